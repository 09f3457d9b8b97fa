"""Micro-batches of a step: from the recipe's data, or as asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from measured_step import micro_batches
from unidecouple.batch import Task
from unidecouple.convert.load import load
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.methods.structure import Dense
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.plan.batch_shapes import BatchShape, Lengths, joint, resized
from unidecouple.plan.sizes import SIZES, build, configuration
from unidecouple.world.batches import world_batches
from unidecouple.world.settings import SyntheticData

DATA = SyntheticData(pairs=24, scenes=24, t2i_batch_size=6, mmu_batch_size=2, router_aux_samples=1)


@pytest.fixture(scope="module")
def janus_pro() -> UniJanusForConditionalGeneration:
    return build(SIZES["janus-pro-1b"], Dense(), None)


def planned(
    model: UniJanusForConditionalGeneration, data: SyntheticData, batch: int | None = None, lengths: Lengths | None = None
) -> list[BatchShape]:
    return list(joint(resized(data, batch), "janus-pro-1b", model.config, lengths or Lengths()))


def test_published_sizes_have_assumed_texts(janus_pro: UniJanusForConditionalGeneration) -> None:
    mmu, t2i, router = planned(janus_pro, DATA)
    assert mmu == BatchShape(Task.MMU, 2, 576 + 2 + 128, 2 * 64, 0, 2)
    assert t2i == BatchShape(Task.T2I, 6, 576 + 64, 0, 6 * 576, 0)
    assert router == BatchShape(Task.MMU, 1, 706, 0, 0, 1, counted=False)


def test_lengths_as_asked(janus_pro: UniJanusForConditionalGeneration) -> None:
    mmu, t2i, _ = planned(janus_pro, DATA, lengths=Lengths(mmu=578 + 256, t2i=600))
    assert (mmu.length, mmu.answers) == (834, 2 * 128)  # answers keep their share of the text
    assert (t2i.length, t2i.drawn) == (600, 6 * 576)
    with pytest.raises(ValueError, match="t2i length 576 must be more than the 576 tokens"):
        planned(janus_pro, DATA, lengths=Lengths(t2i=576))


def test_batch_size_keeps_the_ratio(janus_pro: UniJanusForConditionalGeneration) -> None:
    assert [part.samples for part in planned(janus_pro, DATA, batch=16)] == [4, 12, 2]
    with pytest.raises(ValueError, match=r"batch size 1 leaves no sample for data\.mmu_batch_size"):
        planned(janus_pro, DATA, batch=1)
    with pytest.raises(ValueError, match="both 0"):
        planned(janus_pro, SyntheticData(mmu_batch_size=0, t2i_batch_size=0))


def test_a_single_task_has_one_micro_batch(janus_pro: UniJanusForConditionalGeneration) -> None:
    assert [part.task for part in planned(janus_pro, SyntheticData(mmu_batch_size=0))] == [Task.T2I]


def test_a_part_is_the_fullest_that_training_deals_out(janus_pro: UniJanusForConditionalGeneration) -> None:
    mmu, t2i, router = (part.cut(4) for part in planned(janus_pro, replace(DATA, mmu_batch_size=4)))
    assert (mmu.samples, mmu.pictures, mmu.answers, router.samples) == (1, 1, 64, 1)
    assert (t2i.samples, t2i.drawn) == (len(range(6)[0::4]), 2 * 576)


def test_the_worlds_lengths_are_those_of_training(small_base: Path, small_cache: Path) -> None:
    """Within a twelfth of the padded lengths and answers that real batches have, on average."""
    model, processor = load(str(small_base))
    data = SyntheticData(pairs=64, scenes=64, t2i_batch_size=8, mmu_batch_size=8)
    source = world_batches(data, model, SequenceBuilder(processor), 0, small_cache, lambda what, done, of: None)
    real = [micro_batches(source.batch(step)) for step in range(12)]
    for index, part in enumerate(joint(data, str(small_base), model.config, Lengths())):
        mean = {key: sum(getattr(step[index], key) for step in real) / len(real) for key in ("length", "answers", "drawn")}
        assert (part.length, part.answers, part.drawn) == pytest.approx(tuple(mean.values()), rel=1 / 12)
        assert (part.samples, part.pictures) == (real[0][index].samples, real[0][index].pictures)


def test_edits_and_text_have_the_images_of_training(small_base: Path, small_cache: Path) -> None:
    """Source images of prompts, one or two images per question after an edit, none of text."""
    model, processor = load(str(small_base))
    builder = SequenceBuilder(processor)
    data = SyntheticData(pairs=16, scenes=16, t2i_batch_size=8, mmu_batch_size=8, edit_fraction=0.5, cond_dropout_prob=0.0)
    data = replace(data, edit_question_fraction=0.5)
    source = world_batches(data, model, builder, 0, small_cache, lambda what, done, of: None)
    real = [micro_batches(source.batch(step)) for step in range(12)]
    for index, part in enumerate(joint(data, str(small_base), model.config, Lengths())):
        mean = {key: sum(getattr(step[index], key) for step in real) / len(real) for key in ("length", "pictures")}
        assert (part.length, part.pictures) == pytest.approx((mean["length"], mean["pictures"]), rel=1 / 6)
    longer = SyntheticData(mmu_batch_size=4, t2i_batch_size=4, text_share=0.5)
    assert joint(longer, str(small_base), model.config, Lengths())[0].pictures == 2
    plain, edits = (joint(longer, str(small_base), model.config, Lengths(source_images=n))[1] for n in (0, 2))
    assert (plain.pictures, edits.pictures) == (0, 8)
    assert edits.length - plain.length == 2 * builder.source_length


def test_source_images_of_a_published_size(janus_pro: UniJanusForConditionalGeneration) -> None:
    t2i = planned(janus_pro, DATA, lengths=Lengths(source_images=1))[1]
    assert t2i == BatchShape(Task.T2I, 6, 2 * (576 + 2) + 576 + 64, 0, 6 * 576, 6)


def test_shipped_bases_are_sampled() -> None:
    config = build(configuration("understanding"), Dense(), None).config
    lengths = [part.length for part in joint(DATA, "understanding", config, Lengths())]
    assert all(16 < length < 200 for length in lengths)
