"""Score rows, and the checks on what a model hands back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from unidecouple.eval.benchmark import BenchmarkResult, GenerationBenchmark, Images, QABenchmark, Query, Score, evaluate

PICTURE = np.zeros((2, 2, 3), dtype=np.uint8)


def test_score_row_holds_every_field_in_order() -> None:
    row = Score("pope", "accuracy", 0.75, "official", 1.0, 0.5).to_json()
    assert list(row.items()) == [
        ("benchmark", "pope"),
        ("metric", "accuracy"),
        ("value", 0.75),
        ("judge", "official"),
        ("ceiling", 1.0),
        ("floor", 0.5),
    ]


QUERIES = (Query("1", "a?", PICTURE), Query("2", "b?", PICTURE))


class Echo:
    """Answers with the question's id; its images count up. The first ``lost`` of each are missing."""

    def __init__(self, lost: int = 0) -> None:
        self.lost, self.asked = lost, [0]

    def ask(self, queries: Sequence[Query], /) -> list[str]:
        self.asked.append(len(queries))
        return [query.id for query in queries][self.lost :]

    def generate(self, prompts: Sequence[str], num_images: int, first: int, /) -> list[list[np.ndarray]]:
        return [[PICTURE + first + number] * num_images for number, _ in enumerate(prompts)][self.lost :]


def as_result(values: Sequence[float]) -> BenchmarkResult:
    return BenchmarkResult(tuple(Score("own", str(number), value, "mine") for number, value in enumerate(values)))


def test_questions_are_scored_in_batches() -> None:
    benchmark, model = QABenchmark("own", QUERIES, lambda answers: as_result([float(answers[q.id]) for q in QUERIES])), Echo()
    result = evaluate(benchmark, model, batch_size=1)
    assert [row.value for row in result.scores] == [1.0, 2.0]
    assert (model.asked, result.judge) == ([0, 1, 1], "mine")
    with pytest.raises(ValueError, match="1 answers to 2 questions"):
        evaluate(benchmark, Echo(lost=1))


def test_generated_images_are_scored() -> None:
    def brightness(images: Images) -> BenchmarkResult:
        return as_result([float(np.mean(of_prompt)) for of_prompt in images])

    benchmark = GenerationBenchmark("own", [{"prompt": "a"}, {"prompt": "b"}], 3, brightness)
    assert [row.value for row in evaluate(benchmark, Echo()).scores] == [0.0, 1.0]
    with pytest.raises(ValueError, match="3 for each of 2 prompts"):
        evaluate(benchmark, Echo(lost=1))
