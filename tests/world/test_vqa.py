"""VQA: balance, exact match and mode floors, by hand; an oracle and a model that always gives one answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from answering_model import Answering
from unidecouple.data.sequences import QAPair
from unidecouple.eval.benchmark import evaluate
from unidecouple.world.scene import render
from unidecouple.world.vqa import KINDS, VqaItem, score, vqa_benchmark, vqa_set


def item(kind: str, answer: str) -> VqaItem:
    return VqaItem(0, QAPair(kind, "?", answer))


def by_number(answers: Sequence[str]) -> dict[str, str]:
    return {str(number): answer for number, answer in enumerate(answers)}


def test_scores_by_hand() -> None:
    items = [item("count", "one"), item("count", "one"), item("count", "one"), item("count", "two")]
    items += [item("color", "red"), item("color", "blue"), item("position", "top left")]
    result = score(items, by_number(["One.", "two", "one", " two", "red", "red", "left"]))
    rows = result.scores
    assert {row.metric: (row.value, row.floor) for row in rows} == {
        "accuracy/count": (0.75, 0.75),
        "accuracy/color": (0.5, 0.5),
        "accuracy/position": (0.0, 1.0),
        "accuracy": (pytest.approx(1.25 / 3), pytest.approx(2.25 / 3)),
    }
    assert {(row.benchmark, row.judge, row.ceiling) for row in rows} == {("vqa", "exact", 1.0)}
    assert (result.proportions["accuracy"].mean, result.proportions["accuracy/count"].count) == (pytest.approx(4 / 7), 4)


def test_a_kind_without_questions_is_an_error() -> None:
    with pytest.raises(ValueError, match="no color question"):
        score([item("count", "one"), item("position", "top left")], by_number(["one", "top left"]))


def test_set_is_balanced_and_follows_its_seed() -> None:
    asked = vqa_set(50, seed=2)
    assert Counter(entry.question.kind for entry in asked.items) == dict.fromkeys(KINDS, 50)
    assert len({(entry.scene, entry.question.kind) for entry in asked.items}) == 150
    assert asked == vqa_set(50, seed=2)
    assert asked != vqa_set(50, seed=3)
    with pytest.raises(ValueError, match="questions_per_kind is 0"):
        vqa_set(0, 0)


def test_oracle_scores_one() -> None:
    asked = vqa_set(30, seed=0)
    gold = {(render(asked.scenes[e.scene]).tobytes(), e.question.text): e.question.answer for e in asked.items}

    result = evaluate(vqa_benchmark(30, 0), Answering(lambda image, text: gold[image.tobytes(), text].title() + "."))
    assert {row.value for row in result.scores} == {proportion.mean for proportion in result.proportions.values()} == {1.0}


def test_best_constant_answer_gives_the_floor() -> None:
    answers = Counter(e.question.answer for e in vqa_set(40, seed=0).items if e.question.kind == "count")
    constant = answers.most_common(1)[0][0]
    rows = {row.metric: row for row in evaluate(vqa_benchmark(40, 0), Answering(lambda image, text: constant)).scores}
    assert rows["accuracy/count"].value == rows["accuracy/count"].floor == answers[constant] / 40
    assert rows["accuracy/color"].value == 0.0
