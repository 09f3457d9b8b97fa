"""The benchmark of generate-then-answer: models that see only one image, and one that draws well or badly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from published_sets import write_art
from unidecouple.convert.load import load
from unidecouple.eval.benchmark import Images, Query, VisualCotBenchmark, evaluate
from unidecouple.eval.card import EvalSetup
from unidecouple.eval.model import EvalModel
from unidecouple.eval.session import EvalSession, _asked
from unidecouple.eval.suite import BenchmarkOptions, open_benchmarks
from unidecouple.world.edit_questions import question_set
from unidecouple.world.scene import render
from unidecouple.world.visual_cot import visual_cot_benchmark

ASKED = question_set("test", 3, 5)
TARGETS = [render(one.edit.target) for one in ASKED]
BENCHMARK = visual_cot_benchmark("test", 3, 5)


@dataclass
class Reader:
    """Answers right if the last image is the true one; generates the true image, or the source."""

    draws: bool
    asked: list[int] = field(default_factory=list)

    def check_queries(self, queries: Sequence[Query]) -> None:
        pass

    def check_prompts(self, metadata: Sequence[object], sources: Images = ()) -> None:
        assert [line["prompt"] for line in metadata] == [one.edit.text for one in ASKED]  # type: ignore[index]

    def ask(self, queries: Sequence[Query], /) -> list[str]:
        self.asked.append(len(queries))
        right = [np.array_equal(query.pictures[-1], TARGETS[int(query.id)]) for query in queries]
        return [ASKED[int(q.id)].question.answer if one else "red" for q, one in zip(queries, right, strict=True)]

    ask_grey = ask_text = ask

    def generate(self, prompts: Sequence[str], num_images: int, first: int, sources: Images = (), /) -> list[list[np.ndarray]]:
        assert num_images == 1
        self.asked.append(-len(prompts))
        return [[TARGETS[first + n] if self.draws else source] for n, [source] in enumerate(sources)]


@pytest.mark.parametrize("draws", [True, False])
def test_models_that_read_the_last_image(draws: bool) -> None:
    rows = {row.metric: row for row in evaluate(BENCHMARK, Reader(draws)).scores}
    own = float(draws)
    found = {name: rows[f"accuracy/{name}"].value for name in ("none", "own", "oracle", "wrong")}
    assert found == {"none": 0, "own": own, "oracle": 1, "wrong": 0}
    assert {name: rows[f"gain/{name}"].value for name in ("own", "oracle", "wrong")} == {"own": own, "oracle": 1, "wrong": 0}
    assert (rows["image"].value, rows["image"].floor, rows["image"].ceiling) == (own, 0, 1)
    assert rows["accuracy/own/move"].floor == 2 / 3  # yes, no, yes


def test_the_wrong_image_is_another_question_s_of_the_kind() -> None:
    wrong = [next(n for n, target in enumerate(TARGETS) if np.array_equal(target, image)) for image in BENCHMARK.given["wrong"]]
    assert wrong == [1, 2, 0, 4, 5, 3, 7, 8, 6, 10, 11, 9]
    shown = BENCHMARK.asked([[image] for image in TARGETS])
    assert [len(query.pictures) for name in ("none", "own", "oracle", "wrong") for query in shown[name][:1]] == [1, 2, 2, 2]
    assert np.array_equal(shown["wrong"][0].pictures[0], BENCHMARK.queries[0].pictures[0])


def test_a_session_asks_every_condition_once(tmp_path: Path) -> None:
    session = EvalSession(tmp_path, EvalSetup("x", {}, {}, "float32", "cpu"), blind=("grey",))
    assert session.lacks(BENCHMARK) == 12 * 6
    reader = Reader(True)
    session.run(BENCHMARK, reader)  # type: ignore[arg-type]
    assert sorted(reader.asked) == [-12, *[12] * 5]
    session.run(BENCHMARK, Reader(True))  # type: ignore[arg-type]
    result = session.score(BENCHMARK)
    assert result is not None
    in_memory = evaluate(BENCHMARK, Reader(True)).scores
    assert result.scores[: len(in_memory)] == in_memory
    assert result.scores[len(in_memory)].metric == "accuracy/none (grey image)"
    assert session.lacks(BENCHMARK) == 0
    (tmp_path / "visual_cot" / "answers-own.0.jsonl").unlink()
    with pytest.raises(ValueError, match="lacks 12 answers"):
        session.score(BENCHMARK)
    other = visual_cot_benchmark("test", 3, 6)
    with pytest.raises(ValueError, match="questions_sha256"):
        session.score(other)


def test_a_model_answers_about_both_images(small_base: Path) -> None:
    model, processor = load(str(small_base))
    scored = EvalModel(model, processor, 2)
    benchmark = visual_cot_benchmark("test", 2, 5)
    shown = benchmark.asked(())
    scored.check_queries(shown["oracle"])
    scored.check_prompts(benchmark.generation.metadata, benchmark.generation.sources)
    queries = [shown["none"][0], shown["oracle"][0], shown["oracle"][1]]
    assert scored.ask(queries) == [scored.ask([query])[0] for query in queries]
    prompts = [scored._builder.understanding_prompt(query.text, len(query.pictures)) for query in queries]
    assert len(prompts[1]) - len(prompts[0]) == len(scored._builder._image)
    small = replace(benchmark.queries[0], further=(np.zeros((8, 8, 3), np.uint8),))
    with pytest.raises(ValueError, match="images are 8 pixels a side"):
        scored.ask([small])


def test_what_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="visual_cot has 1 question of each kind; it needs 2"):
        open_benchmarks(["visual_cot"], BenchmarkOptions(limit=1))
    with pytest.raises(ValueError, match="lacks drawings of"):
        open_benchmarks(["visual_cot"], BenchmarkOptions(art=tmp_path))


def test_another_style_draws_sources_and_given_images(tmp_path: Path) -> None:
    [benchmark] = open_benchmarks(["visual_cot"], BenchmarkOptions(limit=3, seed=5, art=write_art(tmp_path)))
    assert isinstance(benchmark, VisualCotBenchmark)
    assert [query.text for query in benchmark.queries] == [query.text for query in BENCHMARK.queries]
    plain, drawn = (_asked(one) for one in (BENCHMARK, benchmark))
    assert {key for key in plain if plain[key] != drawn[key]} == {"questions_sha256", "sources_sha256"}
    assert not np.array_equal(benchmark.given["oracle"][0], TARGETS[0])
