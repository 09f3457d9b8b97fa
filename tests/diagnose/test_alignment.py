"""Mutual kNN: hand-made neighbours, the oracle, the chance level; and whose features are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from unidecouple.batch import NO_IMAGE_TOKEN, Batch, Task
from unidecouple.data.sequences import QAPair, SequenceBuilder, collate
from unidecouple.diagnose import alignment as module
from unidecouple.diagnose.alignment import TooFewPairsError, alignment, chance, mutual_knn
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.world.catalog import CLASSES
from unidecouple.world.questions import CAPTION_REQUEST

MakeModel = Callable[..., UniJanusForConditionalGeneration]
WORDS = CLASSES[:12]


def on_circle(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def test_by_hand() -> None:
    """Four points on a circle; in ``b`` the second and the last have changed places."""
    a, b = on_circle(0, 10, 30, 100), on_circle(0, 100, 30, 10)
    assert mutual_knn(a, a, 1) == 1.0
    assert mutual_knn(a, b, 1) == 0.0, "nearest in a: 1, 0, 1, 2; in b: 3, 2, 3, 0"
    assert mutual_knn(a, b, 2) == pytest.approx((1 + 1 + 1 + 1) / 8), "in a: {12} {02} {01} {12}; in b: {23} {23} {03} {02}"


def test_scale_rotation_and_width_do_not_matter() -> None:
    a = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1))).Q
    wide = torch.cat([3.7 * a @ rotation, torch.zeros(40, 5)], dim=1)
    assert mutual_knn(a, wide, 5) == 1.0


def test_chance_level() -> None:
    """Unrelated features share k / (N - 1) of their neighbours."""
    generator = torch.Generator().manual_seed(0)
    found = [mutual_knn(torch.randn(50, 16, generator=generator), torch.randn(50, 16, generator=generator), 5) for _ in range(60)]
    assert np.mean(found) == pytest.approx(chance(50, 5), abs=4 * np.std(found) / 60**0.5)
    assert chance(50, 5) == pytest.approx(5 / 49)


def test_too_few_items() -> None:
    with pytest.raises(ValueError, match="k=4 neighbours among 4"):
        mutual_knn(torch.eye(4), torch.eye(4), 4)


@pytest.fixture(scope="module")
def pairs(builder: SequenceBuilder) -> dict[Task, Batch]:
    """Twelve images of noise, each with a word of its own, to be understood and to be drawn."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (len(WORDS), 16, 16, 3), dtype=np.uint8)
    seen = [builder.understanding(p, [QAPair("caption", CAPTION_REQUEST, f"a {w}")]) for p, w in zip(pictures, WORDS, strict=True)]
    drawn = [builder.generation(f"a photo of a {w}", rng.integers(0, 64, 16).tolist()) for w in WORDS]
    pad = builder.tokenizer.pad_token_id
    return {Task.MMU: collate(seen, pad), Task.T2I: collate(drawn, pad)}


@pytest.mark.parametrize("task", list(Task))
def test_batches_make_no_difference_and_pairs_are_counted(make_model: MakeModel, pairs: dict[Task, Batch], task: Task) -> None:
    model, batch = make_model(), pairs[task]
    whole, count, k = alignment(model, task, [batch], k=3)
    assert (count, k) == (12, 1), "a tenth of the pairs"
    assert [row.layer for row in whole] == [0, 1, 2]

    def part(rows: slice) -> Batch:
        picked = {
            name: getattr(batch, name)[rows] for name in ("input_ids", "attention_mask", "task_ids", "labels", "image_tokens")
        }
        return Batch(**picked, pixel_values=None if batch.pixel_values is None else batch.pixel_values[rows])

    assert alignment(model, task, [part(slice(0, 5)), part(slice(5, 12))], k=3)[0] == whole
    again = alignment(model, task, [batch, batch], k=3)
    assert (again[1], again[0]) == (12, whole), "words that came before are not counted twice"


@pytest.mark.parametrize(("task", "blind"), [(Task.T2I, "prompt"), (Task.MMU, "picture")])
def test_alone_neither_side_sees_the_other(
    make_model: MakeModel, pairs: dict[Task, Batch], task: Task, blind: str, builder: SequenceBuilder
) -> None:
    """Alone, features of one side do not change with the other; in one sequence what comes later does."""
    model, batch = make_model(), pairs[task]
    if blind == "picture":
        other = replace(batch, pixel_values=batch.pixel_values.flip(0))
    else:
        drawn = batch.image_tokens != NO_IMAGE_TOKEN
        other = replace(batch, image_tokens=torch.where(drawn, batch.image_tokens.flip(0), batch.image_tokens))
    picture, words = module._places(model, task, batch)
    text = batch.attention_mask & ~picture
    with torch.no_grad():
        alone, changed = (module._alone(model, one, text, words) for one in (batch, other))
        first, second = (module._pool(module._states(model, one), words) for one in (batch, other))
    assert torch.equal(alone, changed)
    assert torch.equal(first, second) == (task is Task.T2I), "words come after the image only where it is understood"
    assert int(words.sum(1).min()) > 0
    assert not (words & picture).any()


def test_rows_without_a_picture_or_words_are_left_out(make_model: MakeModel, pairs: dict[Task, Batch]) -> None:
    batch = pairs[Task.MMU]
    silent = replace(batch, labels=batch.labels.clone())
    silent.labels[:3] = -100
    assert alignment(make_model(), Task.MMU, [silent])[1] == 9
    silent.labels[:] = -100
    with pytest.raises(TooFewPairsError, match="0 images with different words"):
        alignment(make_model(), Task.MMU, [silent])
