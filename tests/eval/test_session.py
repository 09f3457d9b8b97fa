"""A session: files in their places, cards that tell all, other models and settings refused, scoring from files alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from published_sets import write_pope
from unidecouple.eval.benchmark import Query, Quiz
from unidecouple.eval.card import PACKAGES, Subject
from unidecouple.eval.pope_files import open_quiz
from unidecouple.eval.session import BLIND, Session
from unidecouple.world.benchmarks import geneval_gallery, pope_quiz

SUBJECT = Subject("runs/x", {"model.safetensors": "ab"}, {"seed": 0, "max_new_tokens": 6}, "float32", "cpu")


class Yes:
    """Says yes, or no when it sees grey; with no picture it has doubts about cows alone; paints white."""

    def check_queries(self, queries: Sequence[Query]) -> None:
        pass

    def check_prompts(self, metadata: Sequence[Mapping[str, Any]]) -> None:
        pass

    def ask(self, queries: Sequence[Query]) -> list[str]:
        return ["Yes"] * len(queries)

    def ask_grey(self, queries: Sequence[Query]) -> list[str]:
        return ["No"] * len(queries)

    def ask_text(self, queries: Sequence[Query]) -> list[str]:
        return ["No" if "cow" in query.text else "Yes" for query in queries]

    def paint(self, prompts: Sequence[str], num_images: int, first: int) -> list[list[np.ndarray]]:
        return [[np.full((64, 64, 3), 255, np.uint8)] * num_images for _ in prompts]


class Dead(Yes):
    """Must not be asked, nor paint."""

    def ask(self, queries: Sequence[Query]) -> list[str]:
        raise AssertionError

    def paint(self, prompts: Sequence[str], num_images: int, first: int) -> list[list[np.ndarray]]:
        raise AssertionError


def answered(session: Session, quiz: Quiz, model: Any) -> None:
    session.answer(quiz, model)


@pytest.fixture
def quiz(tmp_path: Path) -> Quiz:
    return open_quiz(write_pope(tmp_path / "data"), "official")


def test_changed_pictures_are_not_continued(tmp_path: Path, quiz: Quiz) -> None:
    session = Session(tmp_path / "out", SUBJECT)
    answered(session, quiz, Yes())
    picture = tmp_path / "data" / "val2014" / "a.jpg"
    before = picture.read_bytes()
    picture.write_bytes(before + b"x")
    with pytest.raises(ValueError, match="pictures_sha256"):
        answered(session, quiz, Dead())
    picture.write_bytes(before)
    answered(session, quiz, Dead())


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"a": 1}', "null", "{"])
def test_damaged_settings_are_named(tmp_path: Path, quiz: Quiz, content: str) -> None:
    session = Session(tmp_path / "out", SUBJECT)
    answered(session, quiz, Yes())
    (tmp_path / "out" / "pope" / "settings.json").write_text(content)
    for work in (lambda: answered(session, quiz, Yes()), lambda: session.score_quiz(quiz)):
        with pytest.raises(ValueError, match=r"settings\.json is damaged"):
            work()


def test_answers_cards_and_official_files(tmp_path: Path, quiz: Quiz) -> None:
    session = Session(tmp_path / "out", SUBJECT, blind=BLIND)
    answered(session, quiz, Yes())
    report = session.score_quiz(quiz)
    values = {row.metric: row.value for row in report.scores}
    assert (values["accuracy"], values["yes_ratio"]) == (0.5, 1.0)
    assert (values["accuracy (grey picture)"], values["accuracy/random (grey picture)"]) == (0.5, 0.5)
    # right on three cups, and on the cow of the random split, which is not there either; wrong on person and fork
    assert values["accuracy (no picture)"] == pytest.approx(4 / 6)
    assert (values["accuracy/random (no picture)"], values["accuracy/popular (no picture)"]) == (1.0, 0.5)
    folder = tmp_path / "out" / "pope"
    assert (folder / "official" / "pope_popular.jsonl").is_file()
    card = json.loads((folder / "card.json").read_text())
    assert card["weights"] == {"model.safetensors": "ab"}
    assert card["files"] == dict(quiz.files)
    assert set(card["versions"]) == {"python", *PACKAGES}
    assert (card["judge"], card["dtype"], card["device"], card["failures"]) == ("official", "float32", "cpu", {"unparsed": 0})
    assert card["settings"]["questions"] == 4
    row = card["scores"][0]
    assert row["low"] < row["value"] < row["high"]
    assert row["count"] == 6
    page = (folder / "card.md").read_text()
    assert "| accuracy | 0.500 |" in page
    assert "| accuracy (grey picture) | 0.500 |" in page
    assert "| accuracy (no picture) | 0.667 |" in page
    assert card["settings"]["questions_sha256"] in page


def test_each_way_of_asking_blindly_is_one_s_own_choice(tmp_path: Path, quiz: Quiz) -> None:
    for way, told, silent in (("text", "(no picture)", "(grey picture)"), ("grey", "(grey picture)", "(no picture)")):
        session = Session(tmp_path / way, SUBJECT, blind=(way,))  # type: ignore[arg-type]
        answered(session, quiz, Yes())
        metrics = [row.metric for row in session.score_quiz(quiz).scores]
        assert any(told in metric for metric in metrics)
        assert not any(silent in metric for metric in metrics)


def test_scoring_again_needs_no_model_and_may_read_otherwise(tmp_path: Path, quiz: Quiz) -> None:
    answered(Session(tmp_path / "out", SUBJECT), quiz, Yes())
    bare = Session(tmp_path / "out", Subject("runs/x", {}, {}, "float32", "cpu"))
    strict = open_quiz(tmp_path / "data", "exact")
    assert bare.score_quiz(strict).scores[0].judge == "exact"
    card = json.loads((tmp_path / "out" / "pope" / "card.json").read_text())
    assert card["weights"] == {"model.safetensors": "ab"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": {"model.safetensors": "cd"}}, "the weights of runs/x"),
        ({"settings": {"seed": 1, "max_new_tokens": 6}}, "seed 0, not 1"),
        ({"dtype": "bfloat16"}, "dtype float32, not bfloat16"),
    ],
)
def test_another_model_or_setting_is_refused(tmp_path: Path, quiz: Quiz, change: dict[str, Any], said: str) -> None:
    answered(Session(tmp_path / "out", SUBJECT), quiz, Yes())
    with pytest.raises(ValueError, match=said):
        answered(Session(tmp_path / "out", dataclasses.replace(SUBJECT, **change)), quiz, Dead())
    moved = dataclasses.replace(SUBJECT, checkpoint="elsewhere", device="cuda:0")
    answered(Session(tmp_path / "out", moved), quiz, Dead())  # nothing left to ask


def test_other_questions_are_refused(tmp_path: Path, quiz: Quiz) -> None:
    answered(Session(tmp_path / "out", SUBJECT), quiz, Yes())
    with pytest.raises(ValueError, match="questions 4, not 1"):
        Session(tmp_path / "out", SUBJECT).score_quiz(open_quiz(tmp_path / "data", "official", limit=1))
    with pytest.raises(ValueError, match="holds nothing to score"):
        Session(tmp_path / "new", SUBJECT).score_quiz(quiz)


def test_drawn_pictures_are_part_of_what_is_asked(tmp_path: Path) -> None:
    def blank(name: str, color: str, size: int) -> np.ndarray:
        return np.zeros((size, size, 4), np.uint8)

    answered(Session(tmp_path, SUBJECT), pope_quiz(12, 0, "official"), Yes())
    with pytest.raises(ValueError, match="questions_sha256"):
        answered(Session(tmp_path, SUBJECT), pope_quiz(12, 0, "official", blank), Dead())


def test_pictures_are_painted_then_judged(tmp_path: Path) -> None:
    session, gallery = Session(tmp_path, SUBJECT), geneval_gallery(2, 1, 0)
    model: Any = Yes()
    session.paint(gallery, model)
    report = session.score_gallery(gallery, None)
    assert report is not None
    assert report.scores[0].value == 0.0  # white pictures show nothing
    card = json.loads((tmp_path / "geneval" / "card.json").read_text())
    overall = card["scores"][0]
    assert overall["low"] == pytest.approx(0.0, abs=0.05)
    assert overall["ceiling"] == 1.0
    again: Any = Dead()
    session.paint(gallery, again)
    with pytest.raises(ValueError, match="prompts 12, not 18"):
        session.paint(geneval_gallery(3, 1, 0), again)
