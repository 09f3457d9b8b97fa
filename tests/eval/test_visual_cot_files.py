"""UniG2U-Bench's tables in small: what is asked in each condition, and the rules on answers scored by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from published_sets import write_unig2u
from unidecouple.eval.benchmark import evaluate
from unidecouple.eval.suite import BenchmarkOptions, metric_named, open_benchmarks
from unidecouple.eval.visual_cot_files import letter, open_files, relaxed


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_unig2u(tmp_path / "unig2u")
    return tmp_path


def test_what_each_condition_asks(data: Path) -> None:
    benchmark = open_files(data)
    assert benchmark.conditions == ("none", "own", "wrong")
    assert [line["tag"] for line in benchmark.generation.metadata] == ["chartqa100", "mental_tracking", "mental_tracking"]
    assert benchmark.generation.metadata[1]["prompt"] == (
        "Here is the question: Where?\nPlease apply the corresponding transformations and modifications to the contents of the "
        "image according to the question."
    )
    own = [[np.full((8, 8, 3), shade, np.uint8)] for shade in (10, 20, 30)]
    asked = benchmark.asked(own)
    assert asked["none"][0].text == "How many?\nAnswer the question with a single word."
    assert asked["own"][0].text == (
        "In addition to the original chart, you are also given an annotated version that highlights the relevant data points for "
        "the question.\n\nHow many?\nAnswer the question with a single word."
    )
    assert asked["none"][1].text == "Where?\nA. left\nB. right"
    assert asked["own"][1].text == (
        "In addition to the original image, you are also given a transformed version of the image with the modifications applied "
        "according to the question.\n\nWhere?\nA. left\nB. right"
    )
    assert [int(query.further[0].flat[0]) for query in asked["own"]] == [10, 20, 30]  # type: ignore[union-attr]
    assert [int(query.further[0].flat[0]) for query in asked["wrong"]] == [20, 30, 10]  # type: ignore[union-attr]
    assert set(benchmark.asked(())) == {"none"}
    assert len(open_files(data, 1).queries) == 2


def test_scores_by_hand(data: Path) -> None:
    class Model:
        def ask(self, queries: Any, /) -> list[str]:
            return ["20.9" if "How" in query.text else "Answer: A" if query.further else "B" for query in queries]

        def generate(self, prompts: Any, num_images: int, first: int, sources: Any = (), /) -> list[list[np.ndarray]]:
            assert [len(shown) for shown in sources] == [1, 1, 1]
            return [[np.zeros((8, 8, 3), np.uint8)] for _ in prompts]

    rows = {row.metric: (row.value, row.judge) for row in evaluate(open_files(data), Model()).scores}
    assert rows["accuracy/none"] == rows["accuracy/own"] == (2 / 3, "lmms-eval")
    assert rows["accuracy/own/mental_tracking"][0] == 1 / 2
    assert rows["gain/own"][0] == 0
    assert "accuracy/oracle" not in rows


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("19.1", "20", True),
        ("21.01", "20", False),
        ("10%", "0.1", True),
        (" yes", "Yes", True),
        ("0", "0", True),
        ("0.0", "0", False),
        ("x", "20", False),
    ],
)
def test_relaxed_correctness(answer: str, gold: str, right: bool) -> None:
    assert relaxed(answer, gold) is right


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [("The answer is (B).", "B", True), ("B or A", "A", False), ("b", "B", False), ("Answer: C", "C", True), ("", "A", False)],
)
def test_letters(answer: str, gold: str, right: bool) -> None:
    assert letter(answer, gold) is right


def test_what_it_refuses(data: Path, tmp_path: Path) -> None:
    assert metric_named("visual_cot").metric == "accuracy/own"
    with pytest.raises(ValueError, match="has no unig2u"):
        open_benchmarks(["visual_cot"], BenchmarkOptions(data=tmp_path / "none"))
    table = data / "unig2u/realunify/realunify_mental_tracking.parquet"
    pq.write_table(pq.read_table(table).drop_columns(["evaluation_prompt"]), table)
    with pytest.raises(ValueError, match=r"mental_tracking.parquet, row 1: 'prompt' is missing"):
        open_files(data)
    table.rename(table.with_name("realunify_other.parquet"))
    with pytest.raises(ValueError, match=r"realunify_other\.parquet is no table of this benchmark"):
        open_files(data)
