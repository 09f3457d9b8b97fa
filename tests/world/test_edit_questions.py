"""Questions after an edit: their answers from the target scene, read off anew; nothing of a test edit is trained on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unidecouple.batch import IGNORE, Batch
from unidecouple.convert.load import load
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.world.batches import world_batches
from unidecouple.world.catalog import COLORS, NUMBER_WORDS, RELATIONS
from unidecouple.world.dataset import vocabulary
from unidecouple.world.edit_questions import ANSWERS, EditQuestion, question_set, training_question
from unidecouple.world.edits import KINDS, held_out
from unidecouple.world.scene import Scene
from unidecouple.world.settings import SyntheticData

ASKED = question_set("test", 6, 5)


def answer(scene: Scene, text: str) -> str:
    """Of a question in words, from a scene."""
    words = text.removesuffix("?").split()
    if words[0] == "How":
        assert words[:3] == ["How", "many", "are"]
        assert words[3] in COLORS
        return NUMBER_WORDS[sum(obj.color == words[3] for obj in scene.objects)]
    relation = next(one for one in RELATIONS if f" {one} " in text)
    first, second = (next(o for o in scene.objects if o.name == name) for name in (words[2], words[-1]))
    place = {"left of": first.cell % 2 < second.cell % 2, "right of": first.cell % 2 > second.cell % 2}
    place |= {"above": first.cell // 2 < second.cell // 2, "below": first.cell // 2 > second.cell // 2}
    return "yes" if place[relation] else "no"


@pytest.mark.parametrize("one", ASKED, ids=lambda one: one.question.text)
def test_answers_follow_from_the_target(one: EditQuestion) -> None:
    instruction, _, question = one.question.text.partition(". ")
    assert instruction == one.edit.text
    assert answer(one.edit.target, question) == one.question.answer
    assert one.edit.kind == one.question.kind
    assert one.edit.key in held_out("test")


def test_an_answer_is_as_frequent_as_another_and_the_source_is_not_enough() -> None:
    count = Counter((one.question.kind, one.question.answer) for one in ASKED)
    assert count == {(kind, answer): 6 // len(ANSWERS[kind]) for kind in KINDS for answer in ANSWERS[kind]}
    same = Counter(
        one.question.kind for one in ASKED if answer(one.edit.source, one.question.text.partition(". ")[2]) == one.question.answer
    )
    assert set(same) == {"move"}  # an edit changes every count that is asked for
    assert same["move"] < 6


def test_training_keeps_off_the_test_and_the_words_are_known() -> None:
    rng = np.random.default_rng(0)
    trained = [training_question(rng) for _ in range(24)]
    assert not {one.edit.key for one in trained} & (held_out("test") | held_out("val"))
    assert {one.question.kind for one in trained} == set(KINDS)
    words = set(vocabulary())
    for one in (*trained, *ASKED):
        assert set(one.question.text.replace("?", " ?").replace(".", " .").split()) <= words
        assert one.question.answer in words


def test_a_set_is_a_function_of_its_seed() -> None:
    assert question_set("test", 2, 5) == tuple(one for n, one in enumerate(ASKED) if n % 6 < 2)
    assert question_set("test", 2, 6) != question_set("test", 2, 5)


def test_they_are_samples_of_understanding(small_base: Path, small_cache: Path) -> None:
    """About one image, the source, or two; losses are on the answer and its EOS."""
    model, processor = load(str(small_base))
    builder, data = SequenceBuilder(processor), SyntheticData(pairs=4, scenes=4, t2i_batch_size=0, mmu_batch_size=8)

    def batch(fraction: float) -> Batch:
        made = replace(data, edit_question_fraction=fraction)
        return world_batches(made, model, builder, 0, small_cache, lambda what, done, of: None).batch(3)[0]

    whole, part = batch(1.0), batch(0.5)
    assert whole.pixel_values is not None
    assert 8 < len(whole.pixel_values) < 16
    for row in whole.labels.tolist():
        answer, end = [one for one in row if one != IGNORE]
        assert end == processor.tokenizer.eos_token_id
        assert processor.tokenizer.decode([answer]) in {one for some in ANSWERS.values() for one in some}
    asked = [[one for one in row if one != IGNORE] for row in part.labels.tolist()]
    assert 0 < sum(len(row) == 2 for row in asked) < 8
    assert int(model(batch=(whole,)).mmu.count) == 16
