"""The decoder in transformers' hands: its cache under both names, its outputs, and stock generation, without a warning."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.utils.logging import warning_once

from unidecouple.convert.load import load
from unidecouple.models.base import UnifiedModel
from unidecouple.models.janus import UniJanusForConditionalGeneration

MakeModel = Callable[..., UniJanusForConditionalGeneration]
IDS = torch.tensor([[1, 5, 7, 11, 13, 17]])


@pytest.fixture
def library_log() -> Iterator[list[str]]:
    """What transformers logs from warnings on, those that it gives once per process included."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    warning_once.cache_clear()
    logging.getLogger("transformers").addHandler(handler)
    yield lines
    logging.getLogger("transformers").removeHandler(handler)


@pytest.fixture(params=["janus", "emu3"])
def model(request: pytest.FixtureRequest, make_model: MakeModel, emu3_base: Path) -> UnifiedModel:
    return make_model() if request.param == "janus" else load(str(emu3_base))[0].eval()


def greedy(model: UnifiedModel, tokens: int) -> Tensor:
    """Tokens after ``IDS``, every step over the whole sequence, without a cache."""
    ids = IDS
    for _ in range(tokens):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    return ids


@torch.no_grad()
def test_stock_generate_uses_the_cache(model: UnifiedModel, library_log: list[str]) -> None:
    lengths = []
    hook = model.decoder.layers[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    found = model.generate(
        input_ids=IDS, attention_mask=torch.ones_like(IDS), max_length=11, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    hook.remove()
    assert lengths == [IDS.shape[1], 1, 1, 1, 1]
    assert found.tolist() == greedy(model, 5).tolist()
    assert [line for line in library_log if "cache" in line] == []


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@torch.no_grad()
def test_the_cache_has_two_names(model: UnifiedModel, library_log: list[str], name: str) -> None:
    whole = model(input_ids=IDS).logits
    for part in (model, model.decoder):
        cache = DynamicCache(config=model.config.text_config)
        part(input_ids=IDS[:, :4], **{name: cache})
        last = part(input_ids=IDS[:, 4:], **{name: cache})
        logits = last.logits if part is model else model.lm_head(last.last_hidden_state)
        torch.testing.assert_close(logits, whole[:, 4:], atol=1e-5, rtol=1e-5)
        assert cache.get_seq_length() == IDS.shape[1]
        with pytest.raises(ValueError, match="two names of one argument"):
            part(input_ids=IDS, cache=cache, past_key_values=cache)
    assert [line for line in library_log if "cache" in line] == []


@torch.no_grad()
def test_what_the_layers_report_is_no_item(make_model: MakeModel) -> None:
    """transformers' Janus passes the decoder's items on by keyword, to an output that knows its own fields only."""
    model = make_model(ffn="moe")
    output = model.decoder(input_ids=IDS, use_cache=True, key_sets=None)
    assert len(output.routing) == len(model.decoder.layers)
    assert output.key_set_shares is None
    assert len(output) == 2  # the state and the cache
    assert model(input_ids=IDS, use_cache=True).logits.shape[:2] == IDS.shape


def test_no_cache_where_layers_are_recomputed(make_model: MakeModel) -> None:
    """The backward pass would extend it a second time."""
    decoder: Any = make_model().decoder
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # its new name is not in transformers 5.22
        decoder.gradient_checkpointing_enable({"use_reentrant": False})
    decoder.train()
    with pytest.raises(ValueError, match="does not go with gradient checkpointing"):
        decoder(input_ids=IDS, use_cache=True)
    with torch.no_grad():
        assert decoder(input_ids=IDS, use_cache=True)[1].get_seq_length() == IDS.shape[1]
    decoder(input_ids=IDS).last_hidden_state.sum().backward()
