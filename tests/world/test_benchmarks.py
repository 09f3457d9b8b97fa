"""The synthetic benchmarks: the very scores that ``pope.evaluate`` and ``vqa.evaluate`` give, with intervals; GenEval's bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unidecouple.eval.benchmark import Quiz
from unidecouple.eval.gallery import score_gallery
from unidecouple.eval.painting import paint_folder
from unidecouple.world import pope, vqa
from unidecouple.world.benchmarks import geneval_gallery, pope_quiz, vqa_quiz
from unidecouple.world.prompts import scene_of, spread
from unidecouple.world.scene import render


def answers(quiz: Quiz) -> dict[str, str]:
    """Of a model that answers by the length of the question and the ink of the picture."""
    return {query.id: by_ink(query.picture, query.text) for query in quiz.queries if isinstance(query.picture, np.ndarray)}


def by_ink(picture: np.ndarray, text: str) -> str:
    return ["yes", "no", "red", "maybe"][(len(text) + int(picture.sum())) % 4]


def model(images: list[np.ndarray], questions: list[str]) -> list[str]:
    return [by_ink(image, question) for image, question in zip(images, questions, strict=True)]


@pytest.mark.parametrize("parser", ["official", "exact"])
def test_pope_is_training_s_own(parser: str) -> None:
    quiz = pope_quiz(12, 5, parser)
    report = quiz.score(answers(quiz))
    assert list(report.scores) == pope.evaluate(model, 12, 5, parser)
    rows = {row.metric: row.value for row in report.scores}
    assert {metric: share.mean for metric, share in report.shares.items()} == {m: pytest.approx(rows[m]) for m in report.shares}
    assert len(report.shares) == 4
    assert report.failures["unparsed"] == sum(answer in ("red", "maybe") for answer in answers(quiz).values())


def test_vqa_is_training_s_own() -> None:
    quiz = vqa_quiz(8, 3)
    report = quiz.score(answers(quiz))
    assert list(report.scores) == vqa.evaluate(model, 8, 3)
    assert report.shares["accuracy"].mean == pytest.approx(report.scores[-1].value)


def test_another_art_changes_pictures_alone() -> None:
    def blank(name: str, color: str, size: int) -> np.ndarray:
        return np.zeros((size, size, 4), np.uint8)

    usual, other = pope_quiz(12, 5, "official"), pope_quiz(12, 5, "official", blank)
    assert [query.text for query in usual.queries] == [query.text for query in other.queries]
    assert all(isinstance(query.picture, np.ndarray) and (query.picture == 255).all() for query in other.queries)


def test_an_unknown_parser_is_refused_before_anything_is_drawn() -> None:
    with pytest.raises(ValueError, match="unknown POPE parser 'x'"):
        pope_quiz(12, 0, "x")


def test_ground_truth_reaches_the_ceiling(tmp_path: Path) -> None:
    gallery = geneval_gallery(2, 1, 0)
    rng = np.random.default_rng(0)
    pictures = [[render(scene_of(prompt, rng))] for prompt in spread("test", 2)]
    paint_folder(lambda prompts, copies, first: pictures[first : first + len(prompts)], gallery.metadata, 1, tmp_path)
    scored = score_gallery(gallery, tmp_path, None)
    assert scored is not None
    report, judge = scored
    overall = report.scores[0]
    assert (judge, overall.metric, overall.value, overall.ceiling) == ("template", "overall", 1.0, 1.0)
    assert overall.floor is not None
    assert overall.floor < 0.5
    assert report.shares["images"].count == 12
