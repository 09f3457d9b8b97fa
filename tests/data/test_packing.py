"""Packed rows give the losses and gradients of rows of their own, and hold hardly any padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decoder_kinds import every_kind
from unidecouple.batch import IGNORE, Batch, Task
from unidecouple.data.packing import fewest_shortest, first_fit_decreasing, pack
from unidecouple.data.sequences import QAPair, Sample, SequenceBuilder, collate
from unidecouple.models.base import JointOutput
from unidecouple.models.janus import UniJanusForConditionalGeneration

lengths_of = st.lists(st.integers(1, 40), min_size=1, max_size=40)


def test_by_hand() -> None:
    assert first_fit_decreasing([4, 8, 1, 4, 2, 1], 10) == [[1, 4], [0, 3, 2, 5]]
    assert fewest_shortest([4, 4, 4, 4], 14) == [[0, 1], [2, 3]]  # not three in the first row and padding in the second
    with pytest.raises(ValueError, match="11 tokens does not fit a row of 10: raise max_length"):
        first_fit_decreasing([11], 10)


@given(lengths=lengths_of, capacity=st.integers(40, 100))
def test_every_sequence_once_and_no_row_too_long(lengths: list[int], capacity: int) -> None:
    plain, tight = first_fit_decreasing(lengths, capacity), fewest_shortest(lengths, capacity)
    for rows in (plain, tight):
        assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
        assert max(sum(lengths[n] for n in row) for row in rows) <= capacity
    assert len(tight) <= len(plain)


@pytest.mark.parametrize(("samples", "row", "filled"), [(320, 4096, 0.96), (320, 8192, 0.98), (64, 4096, 0.97)])
def test_padding_of_janus_pros_mix(samples: int, row: int, filled: float) -> None:
    """Understanding, texts and generation 5 : 1 : 4, as Janus-Pro's last stage has them (arXiv 2501.17811, section 2.2; Janus had
    7 : 3 : 10); images of 576 tokens. A row of 4,096 holds about six of them, and texts to fill what is left are few.
    """
    rng = np.random.default_rng(0)
    kinds = rng.permutation(np.repeat([0, 1, 2], [samples // 2, samples // 10, samples - samples // 2 - samples // 10]))
    texts = rng.integers(16, 400, samples)
    lengths = np.select([kinds == 0, kinds == 1], [600 + texts, texts], 590 + texts // 8).tolist()
    rows = fewest_shortest(lengths, row)
    width = max(sum(lengths[n] for n in one) for one in rows)
    assert sum(lengths) / (width * len(rows)) >= filled


@pytest.fixture
def samples(builder: SequenceBuilder, pictures: np.ndarray) -> list[Sample]:
    """Questions, images to draw and words alone, of different lengths."""
    asked = QAPair("pope", "Is there a cow in the image?", "yes")
    tokens = np.random.default_rng(1).integers(0, 64, (2, 16)).tolist()
    turns = [("user", [pictures[2], "Where is the", pictures[3]]), ("assistant", ["left"])]
    return [
        builder.understanding(pictures[0], [asked]),
        builder.generation("a photo of a cow", tokens[0]),
        builder.conversation(turns, Task.MMU),
        builder.generation("a photo of two red cups", tokens[1], dropped=True),
        builder.conversation([("user", ["yes"]), ("assistant", ["no"])], Task.MMU),
        builder.understanding(pictures[1], [asked, asked]),
    ]


def measured(model: UniJanusForConditionalGeneration, batch: Batch) -> tuple[JointOutput, dict[str, torch.Tensor]]:
    model.zero_grad()
    output = model(batch=(batch,))
    (output.mmu.mean + output.t2i.mean).backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@every_kind
def test_losses_and_gradients_are_those_of_rows_of_their_own(
    make_model: Callable[..., UniJanusForConditionalGeneration],
    builder: SequenceBuilder,
    samples: list[Sample],
    kind: dict[str, Any],
    attention: str,
) -> None:
    model, pad = make_model(**kind), builder.tokenizer.pad_token_id
    model.set_attn_implementation(attention)
    packed = pack(samples, 120, pad)
    assert len(packed.input_ids) < len(samples)
    apart, wanted = measured(model, collate(samples, pad))
    together, found = measured(model, packed)
    for task in ("mmu", "t2i"):
        assert int(getattr(apart, task).count) == int(getattr(together, task).count) > 0
        assert getattr(apart, task).total.item() == pytest.approx(getattr(together, task).total.item(), rel=1e-5)
    assert wanted.keys() == found.keys()
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).abs().max()) <= 1e-5 * scale, name


def test_a_row_knows_where_its_sequences_start(builder: SequenceBuilder, samples: list[Sample]) -> None:
    batch = pack(samples, 150, builder.tokenizer.pad_token_id)
    assert batch.position_ids is not None
    bos = batch.input_ids == builder.tokenizer.bos_token_id
    assert int(bos.sum()) == len(samples)
    starts = (batch.position_ids == 0) & batch.attention_mask
    assert torch.equal(bos, starts)
    assert set(batch.labels[bos].tolist()) == {IGNORE}
    assert batch.num_tokens == sum(len(sample.input_ids) for sample in samples)
    assert batch.to("cpu").position_ids is not None


@torch.no_grad()
def test_without_boundaries_losses_differ(
    make_model: Callable[..., UniJanusForConditionalGeneration], builder: SequenceBuilder, samples: list[Sample]
) -> None:
    """The parity above is not for want of a difference to see."""
    model = make_model()
    packed = pack(samples, 150, builder.tokenizer.pad_token_id)
    right = float(model(batch=(packed,)).mmu.total)
    assert abs(float(model(batch=(replace(packed, position_ids=None),)).mmu.total) - right) > 0.01 * right


def test_a_first_token_that_is_a_target_cannot_be_packed(samples: list[Sample]) -> None:
    wrong = replace(samples[0], labels=samples[0].input_ids)
    with pytest.raises(ValueError, match="first token is a target"):
        pack([wrong], 100, 0)
