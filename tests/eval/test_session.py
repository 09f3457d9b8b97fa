"""A session: files in their places, cards that tell all, other models and settings refused, scoring from files alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from published_sets import write_pope
from unidecouple.eval.benchmark import AnyBenchmark, Images, QABenchmark, Query
from unidecouple.eval.card import PACKAGES, EvalSetup
from unidecouple.eval.pope_files import open_files
from unidecouple.eval.session import BLIND, EvalSession
from unidecouple.eval.suite import BenchmarkOptions, SyntheticSizes
from unidecouple.world import geneval
from unidecouple.world.pope import pope_benchmark

SETUP = EvalSetup("runs/x", {"model.safetensors": "ab"}, {"seed": 0, "max_new_tokens": 6}, "float32", "cpu")


class Yes:
    """Says yes, or no when it sees grey; with no image it has doubts about cows alone; generates white."""

    def check_queries(self, queries: Sequence[Query]) -> None:
        pass

    def check_prompts(self, metadata: Sequence[Mapping[str, Any]], sources: Images = ()) -> None:
        pass

    def ask(self, queries: Sequence[Query]) -> list[str]:
        return ["Yes"] * len(queries)

    def ask_grey(self, queries: Sequence[Query]) -> list[str]:
        return ["No"] * len(queries)

    def ask_text(self, queries: Sequence[Query]) -> list[str]:
        return ["No" if "cow" in query.text else "Yes" for query in queries]

    def generate(self, prompts: Sequence[str], num_images: int, first: int) -> list[list[np.ndarray]]:
        return [[np.full((64, 64, 3), 255, np.uint8)] * num_images for _ in prompts]


class Dead(Yes):
    """Must be asked nothing."""

    def ask(self, queries: Sequence[Query]) -> list[str]:
        raise AssertionError

    def generate(self, prompts: Sequence[str], num_images: int, first: int) -> list[list[np.ndarray]]:
        raise AssertionError


def answered(session: EvalSession, benchmark: QABenchmark, model: Any) -> None:
    session.run(benchmark, model)


@pytest.fixture
def benchmark(tmp_path: Path) -> QABenchmark:
    return open_files(write_pope(tmp_path / "data"), "official")


def test_changed_pictures_are_not_continued(tmp_path: Path, benchmark: QABenchmark) -> None:
    session = EvalSession(tmp_path / "out", SETUP)
    answered(session, benchmark, Yes())
    picture = tmp_path / "data" / "val2014" / "a.jpg"
    before = picture.read_bytes()
    picture.write_bytes(before + b"x")
    with pytest.raises(ValueError, match="pictures_sha256"):
        answered(session, benchmark, Dead())
    picture.write_bytes(before)
    answered(session, benchmark, Dead())


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"a": 1}', "null", "{"])
def test_damaged_settings_are_named(tmp_path: Path, benchmark: QABenchmark, content: str) -> None:
    session = EvalSession(tmp_path / "out", SETUP)
    answered(session, benchmark, Yes())
    (tmp_path / "out" / "pope" / "settings.json").write_text(content)
    for work in (lambda: answered(session, benchmark, Yes()), lambda: session.score(benchmark)):
        with pytest.raises(ValueError, match=r"settings\.json is damaged"):
            work()


def test_answers_cards_and_official_files(tmp_path: Path, benchmark: QABenchmark) -> None:
    session = EvalSession(tmp_path / "out", SETUP, blind=BLIND)
    answered(session, benchmark, Yes())
    report = session.score(benchmark)
    assert report is not None
    values = {row.metric: row.value for row in report.scores}
    assert (values["accuracy"], values["yes_ratio"]) == (0.5, 1.0)
    assert (values["accuracy (grey image)"], values["accuracy/random (grey image)"]) == (0.5, 0.5)
    # right on three cups, and on the cow of the random split, which is not there either; wrong on person and fork
    assert values["accuracy (no image)"] == pytest.approx(4 / 6)
    assert (values["accuracy/random (no image)"], values["accuracy/popular (no image)"]) == (1.0, 0.5)
    folder = tmp_path / "out" / "pope"
    assert (folder / "official" / "pope_popular.jsonl").is_file()
    card = json.loads((folder / "card.json").read_text())
    assert card["weights"] == {"model.safetensors": "ab"}
    assert card["files"] == dict(benchmark.files)
    assert set(card["versions"]) == {"python", *PACKAGES}
    assert (card["judge"], card["dtype"], card["device"], card["failures"]) == ("official", "float32", "cpu", {"unparsed": 0})
    assert card["settings"]["questions"] == 4
    row = card["scores"][0]
    assert row["low"] < row["value"] < row["high"]
    assert row["count"] == 6
    page = (folder / "card.md").read_text()
    assert "| accuracy | 0.500 |" in page
    assert "| accuracy (grey image) | 0.500 |" in page
    assert "| accuracy (no image) | 0.667 |" in page
    assert card["settings"]["questions_sha256"] in page


def test_each_way_of_asking_blindly_is_one_s_own_choice(tmp_path: Path, benchmark: QABenchmark) -> None:
    for way, used, silent in (("text", "(no image)", "(grey image)"), ("grey", "(grey image)", "(no image)")):
        session = EvalSession(tmp_path / way, SETUP, blind=(way,))  # type: ignore[arg-type]
        answered(session, benchmark, Yes())
        report = session.score(benchmark)
        assert report is not None
        metrics = [row.metric for row in report.scores]
        assert any(used in metric for metric in metrics)
        assert not any(silent in metric for metric in metrics)


def test_scoring_again_needs_no_model_and_may_read_otherwise(tmp_path: Path, benchmark: QABenchmark) -> None:
    answered(EvalSession(tmp_path / "out", SETUP), benchmark, Yes())
    bare = EvalSession(tmp_path / "out", EvalSetup("runs/x", {}, {}, "float32", "cpu"))
    strict = open_files(tmp_path / "data", "exact")
    report = bare.score(strict)
    assert report is not None
    assert report.judge == "exact"
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
def test_another_model_or_setting_is_refused(tmp_path: Path, benchmark: QABenchmark, change: dict[str, Any], said: str) -> None:
    answered(EvalSession(tmp_path / "out", SETUP), benchmark, Yes())
    with pytest.raises(ValueError, match=said):
        answered(EvalSession(tmp_path / "out", dataclasses.replace(SETUP, **change)), benchmark, Dead())
    moved = dataclasses.replace(SETUP, checkpoint="elsewhere", device="cuda:0")
    answered(EvalSession(tmp_path / "out", moved), benchmark, Dead())  # nothing left to ask


def test_other_questions_are_refused(tmp_path: Path, benchmark: QABenchmark) -> None:
    answered(EvalSession(tmp_path / "out", SETUP), benchmark, Yes())
    with pytest.raises(ValueError, match="questions 4, not 1"):
        EvalSession(tmp_path / "out", SETUP).score(open_files(tmp_path / "data", "official", limit=1))
    with pytest.raises(ValueError, match="holds nothing to score"):
        EvalSession(tmp_path / "new", SETUP).score(benchmark)


def test_drawn_pictures_are_part_of_what_is_asked(tmp_path: Path) -> None:
    def blank(name: str, color: str, size: int) -> np.ndarray:
        return np.zeros((size, size, 4), np.uint8)

    answered(EvalSession(tmp_path, SETUP), pope_benchmark(12, 0, "official"), Yes())
    with pytest.raises(ValueError, match="questions_sha256"):
        answered(EvalSession(tmp_path, SETUP), pope_benchmark(12, 0, "official", blank), Dead())


def white_prompts(per_tag: int) -> AnyBenchmark:
    return geneval.BENCHMARK.open(BenchmarkOptions(limit=per_tag, sizes=SyntheticSizes(num_images=1)))


def test_images_are_generated_then_judged(tmp_path: Path) -> None:
    session, prompts = EvalSession(tmp_path, SETUP), white_prompts(2)
    model: Any = Yes()
    session.run(prompts, model)
    report = session.score(prompts)
    assert report is not None
    assert report.scores[0].value == 0.0  # white images show nothing
    card = json.loads((tmp_path / "geneval" / "card.json").read_text())
    overall = card["scores"][0]
    assert overall["low"] == pytest.approx(0.0, abs=0.05)
    assert overall["ceiling"] == 1.0
    again: Any = Dead()
    session.run(prompts, again)
    with pytest.raises(ValueError, match="prompts 12, not 18"):
        session.run(white_prompts(3), again)
    shutil.rmtree(tmp_path / "geneval" / "images" / "00003")
    with pytest.raises(ValueError, match="images of 11 of 12 prompts"):
        session.score(prompts)
    with pytest.raises(ValueError, match="no file of detections"):
        session.score(dataclasses.replace(prompts, read_detections=None), tmp_path / "results.jsonl")  # type: ignore[arg-type]
