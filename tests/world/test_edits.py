"""Edits of scenes: exact targets, held-out keys, words that the bases know."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unidecouple.batch import NO_IMAGE_TOKEN, Task
from unidecouple.convert.load import load
from unidecouple.data.sequences import SequenceBuilder, pixels
from unidecouple.models.vq import encode_image_tokens
from unidecouple.world.batches import world_batches
from unidecouple.world.edits import KINDS, edit, edit_set, held_out, training_edit
from unidecouple.world.scene import CELL_NAMES, render
from unidecouple.world.settings import SyntheticData


def test_the_target_follows_from_the_source_and_the_instruction(builder: SequenceBuilder) -> None:
    rng = np.random.default_rng(0)
    for kind in KINDS:
        for _ in range(40):
            one = edit(kind, rng)
            assert builder.unknown_words(one.text)[1] == []
            before, after = set(one.source.objects), set(one.target.objects)
            gone, new = before - after, after - before
            assert (len(gone), len(new)) == {"recolor": (1, 1), "move": (1, 1), "remove": (1, 0), "add": (0, 1)}[kind]
            assert len({obj.name for obj in before | after}) == max(len(before), len(after))  # so that a class names one object
            assert len({obj.cell for obj in after}) == len(after) > 0
            obj = (new or gone).pop()
            color, cell = obj.color, CELL_NAMES[obj.cell]
            texts = {
                "recolor": f"the {obj.name} is {color}",
                "move": f"the {obj.name} is in the {cell}",
                "remove": f"there is no {obj.name}",
                "add": f"there is a {color} {obj.name} in the {cell}",
            }
            assert one.text == texts[kind]
            assert one.key == (kind, obj.name, color if kind == "recolor" else cell)
            if kind in ("recolor", "move"):
                [old] = gone
                assert replace(old, color=obj.color) == obj if kind == "recolor" else replace(old, cell=obj.cell) == obj


def test_training_has_no_held_out_key() -> None:
    val, test = held_out("val"), held_out("test")
    assert not val & test
    assert Counter(key[0] for key in test) == {"recolor": 36, "move": 24, "remove": 24, "add": 24}
    rng = np.random.default_rng(1)
    trained = [training_edit(rng) for _ in range(400)]
    assert not (val | test) & {one.key for one in trained}
    assert min(Counter(one.kind for one in trained).values()) > 70
    asked = edit_set("test", 5, 0)
    assert Counter(one.kind for one in asked) == dict.fromkeys(KINDS, 5)
    assert {one.key for one in asked} <= test
    assert asked == edit_set("test", 5, 0) != edit_set("test", 5, 1)
    with pytest.raises(ValueError, match="unknown split 'train'; known: val, test"):
        held_out("train")


def test_edits_are_samples_of_generation(small_base: Path, small_cache: Path) -> None:
    """Half of them; the others, and all samples without edits, are as before."""
    model, processor = load(str(small_base))
    builder, data = SequenceBuilder(processor), SyntheticData(pairs=12, scenes=4, t2i_batch_size=8, mmu_batch_size=0)

    def opened(fraction: float, **more: float) -> object:
        made = replace(data, edit_fraction=fraction, **more)  # type: ignore[arg-type]
        return world_batches(made, model, builder, 0, small_cache, lambda what, done, of: None)

    batches = opened(0.5, cond_dropout_prob=0.0)
    (batch,) = batches.batch(3)  # type: ignore[attr-defined]
    assert batch.source_tokens is not None
    edits = (batch.source_tokens != NO_IMAGE_TOKEN).any(1)
    assert 0 < int(edits.sum()) == len(batch.pixel_values) < 8
    first = batches.edits[0]  # type: ignore[attr-defined]
    shown = encode_image_tokens(model.model.vqmodel, pixels([render(first.source), render(first.target)]))
    assert batches.edit_tokens[0].tolist() == shown.tolist()  # type: ignore[attr-defined]
    assert int(model(batch=(batch,)).t2i.count) == 8 * builder.num_image_tokens
    (every,) = opened(1.0, cond_dropout_prob=0.0).batch(0)  # type: ignore[attr-defined]
    assert len(every.pixel_values) == 8
    (none,) = opened(1.0, cond_dropout_prob=1.0).batch(0)  # type: ignore[attr-defined]
    assert (none.pixel_values, none.source_tokens) == (None, None)
    assert Task.T2I in batches.tasks  # type: ignore[attr-defined]
