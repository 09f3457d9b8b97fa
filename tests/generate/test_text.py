"""Answers: a padded batch gives what questions one by one give, and the cache what a full forward gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from decoder_kinds import every_kind
from unidecouple.data.sequences import SequenceBuilder, pixels
from unidecouple.generate.text import answer
from unidecouple.models.janus import UniJanusForConditionalGeneration

MakeModel = Callable[..., UniJanusForConditionalGeneration]

QUESTIONS = ["Describe the image.", "Is there a cow in the image?", "Where is the red television?", "How many pigs are there?"]


def stop_sometimes(model: UniJanusForConditionalGeneration, builder: SequenceBuilder) -> UniJanusForConditionalGeneration:
    """Answers of words that differ in length: the end of an answer is likelier, other special tokens are not said."""
    eos = builder.tokenizer.eos_token_id
    model.lm_head.weight.data[[i for i in builder.tokenizer.all_special_ids if i != eos]] = 0
    model.lm_head.weight.data[eos] *= 2
    return model


@pytest.mark.slow
@every_kind
def test_a_padded_batch_equals_one_by_one(
    make_model: MakeModel, builder: SequenceBuilder, pictures: np.ndarray, kind: dict[str, Any]
) -> None:
    model = stop_sometimes(make_model(seed=2, **kind), builder)
    together = answer(model, builder, pictures, QUESTIONS, max_new_tokens=8)
    alone = [answer(model, builder, [p], [q], max_new_tokens=8)[0] for p, q in zip(pictures, QUESTIONS, strict=True)]
    assert together == alone == answer(model, builder, pictures, QUESTIONS, max_new_tokens=8, batch_size=3)
    assert len(set(together)) == 4


@pytest.mark.slow
@every_kind
@torch.no_grad()
def test_cache_equals_full_recompute(
    make_model: MakeModel, builder: SequenceBuilder, pictures: np.ndarray, kind: dict[str, Any]
) -> None:
    model = stop_sometimes(make_model(seed=2, **kind), builder)
    lengths = []
    for picture, question in zip(pictures, QUESTIONS, strict=True):
        prompt = builder.understanding_prompt(question)
        ids = list(prompt)
        while len(ids) < len(prompt) + 8:
            out = model(input_ids=torch.tensor([ids]), pixel_values=pixels([picture]), task_ids=torch.zeros(1, 1, dtype=torch.long))
            token = int(out.logits[0, -1].argmax())
            if token == builder.tokenizer.eos_token_id:
                break
            ids.append(token)
        expected = builder.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
        assert answer(model, builder, [picture], [question], max_new_tokens=8) == [expected]
        lengths.append(len(ids) - len(prompt))
    assert max(lengths) > 2


def test_answers_end_at_eos(make_model: MakeModel, builder: SequenceBuilder, pictures: np.ndarray) -> None:
    """Of rows in one batch some end early; what they would say next is not shown."""
    model = stop_sometimes(make_model(seed=2), builder)
    model.lm_head.weight.data[builder.tokenizer.eos_token_id] *= 2
    stopped = answer(model, builder, pictures, QUESTIONS, max_new_tokens=8)
    model.lm_head.weight.data[builder.tokenizer.eos_token_id] = 0
    endless = answer(model, builder, pictures, QUESTIONS, max_new_tokens=8)
    assert any(len(short) < len(long) for short, long in zip(stopped, endless, strict=True))
    assert all(long.startswith(short) for short, long in zip(stopped, endless, strict=True))


def test_answers_are_never_longer_than_asked(make_model: MakeModel, builder: SequenceBuilder, pictures: np.ndarray) -> None:
    model = make_model(seed=2)
    model.lm_head.weight.data[[*builder.tokenizer.all_special_ids]] = 0
    words = [answer(model, builder, pictures[:1], QUESTIONS[:1], max_new_tokens=length)[0].split() for length in (1, 2, 6)]
    assert [len(said) for said in words] == [1, 2, 6]


def test_the_picture_matters(make_model: MakeModel, builder: SequenceBuilder, pictures: np.ndarray) -> None:
    said = answer(make_model(seed=2), builder, pictures, [QUESTIONS[0]] * 4, max_new_tokens=8)
    assert len(set(said)) > 1


def test_forced_routing(make_model: MakeModel, builder: SequenceBuilder, pictures: np.ndarray) -> None:
    """Labelled with the task, tokens go to the understanding experts, wherever the router would send them."""
    model = make_model(seed=2, ffn="ta_moe")
    chosen, forced = (answer(model, builder, pictures, QUESTIONS, max_new_tokens=8, routing=routing) for routing in (None, "label"))
    assert chosen != forced
    for layer in model.decoder.layers:
        layer.mlp.router.weight.data.zero_()  # all to understanding
        layer.mlp.experts.down_proj.data[2:] = 0  # generation's experts play no part
    assert answer(model, builder, pictures, QUESTIONS, max_new_tokens=8, routing="label") == forced
    assert answer(model, builder, pictures, QUESTIONS, max_new_tokens=8) == forced
