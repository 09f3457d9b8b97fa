"""Conditions of generate-then-answer are compared on the same questions: values by hand, intervals by the project's own rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from unidecouple.eval.benchmark import Answers, BenchmarkResult, GenerationBenchmark, Images, Query, VisualCotBenchmark
from unidecouple.eval.card import EvalSetup
from unidecouple.eval.session import EvalSession
from unidecouple.eval.statistics import mean_interval
from unidecouple.eval.visual_cot import CotItem, compare_conditions, exactly
from unidecouple.shares import WorkShare

GOLD = {"a": "yes", "b": "no", "c": "one", "d": "two", "e": "two"}
ITEMS = [CotItem(name, "move" if name in "ab" else "add", gold, exactly) for name, gold in GOLD.items()]
ANSWERS = {
    "none": {"a": "yes", "b": "yes", "c": "red", "d": "red", "e": "two"},
    "own": {"a": "Yes.", "b": "no", "c": "one", "d": "red", "e": "red"},
}


def test_accuracies_and_paired_gains_by_hand() -> None:
    result = compare_conditions(ITEMS, ANSWERS, "exact")
    rows = {row.metric: row for row in result.scores}
    assert {name: row.value for name, row in rows.items()} == pytest.approx(
        {
            "accuracy/none": 2 / 5,
            "accuracy/own": 3 / 5,
            "gain/own": (0 + 1 + 1 + 0 - 1) / 5,
            "accuracy/none/move": 1 / 2,
            "accuracy/none/add": 1 / 3,
            "accuracy/own/move": 1,
            "accuracy/own/add": 1 / 3,
        }
    )
    assert rows["accuracy/own"].floor == pytest.approx((2 * 1 / 2 + 3 * 2 / 3) / 5)  # the most frequent answer of each kind
    assert (rows["gain/own"].floor, rows["gain/own"].ceiling) == (None, None)
    by_question = mean_interval([0, 1, 1, 0, -1])
    assert result.proportions["gain/own"].interval() == pytest.approx((by_question.low, by_question.high))
    assert result.proportions["gain/own"].count == 5


WHITE = np.full((8, 8, 3), 255, np.uint8)


class Copies:
    """Answers yes; generates its source image."""

    def check_queries(self, queries: Sequence[Query]) -> None:
        pass

    def check_prompts(self, metadata: Sequence[object], sources: Images = ()) -> None:
        pass

    def ask(self, queries: Sequence[Query], /) -> list[str]:
        return ["yes"] * len(queries)

    ask_grey = ask_text = ask

    def generate(self, prompts: Sequence[str], num_images: int, first: int, sources: Images = (), /) -> list[list[np.ndarray]]:
        return [list(shown) for shown in sources]


def test_shares_of_a_job_array_ask_what_other_shares_images_allow(tmp_path: Path) -> None:
    lines = [{"tag": "move", "prompt": f"cow {n}"} for n in range(80)]
    generation = GenerationBenchmark("edits", lines, 1, None, sources=[[WHITE]] * 80)
    queries = tuple(Query(str(n), "Is there a cow?", WHITE) for n in range(80))

    def score(answers: Mapping[str, Answers], own: Images) -> BenchmarkResult:
        return compare_conditions([CotItem(query.id, "move", "yes", exactly) for query in queries], answers, "exact")

    benchmark = VisualCotBenchmark("visual_cot", queries, generation, score, {"wrong": [WHITE] * 80, "oracle": [WHITE] * 80})

    def run(rank: int) -> int:
        share = WorkShare(rank, 2, independent=True)
        session = EvalSession(tmp_path, EvalSetup("x", {}, {}, "float32", "cpu"), share=share)
        session.run(benchmark, Copies())  # type: ignore[arg-type]
        return session.lacks(benchmark)

    assert [run(0), run(1), run(0)] == [16 + 40 * 3 + 80, 40, 0]
    result = EvalSession(tmp_path, EvalSetup("x", {}, {}, "float32", "cpu")).score(benchmark)
    assert result is not None
    assert {row.value for row in result.scores if row.metric.startswith("accuracy")} == {1}
