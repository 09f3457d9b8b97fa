"""Questions of general knowledge and grammar with four choices each, answered by likelihood: plain text, no chat, no image.

Files: ``multiple_choice/*.jsonl`` or ``*.jsonl``, lines {"question", "choices", "answer"}, perhaps "id"; "answer" is the right
choice's number, from 0. Without files: 80 questions of our own (Apache-2.0 as the package), each of the four places right in 20.

The form is that of lm-evaluation-harness for ARC: the model reads "Question: …", then "Answer:" on a new line, and a choice
scores the log-likelihood of its tokens after a space.

    accuracy       the choice with the largest log-likelihood (lm-eval's acc)
    accuracy_norm  the choice with the largest log-likelihood per character (lm-eval's acc_norm)

Of equal choices the first counts, so a model that ignores the question gets the share of its place: 1/4.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from unidecouple.batch import LANGUAGE
from unidecouple.eval.benchmark import Answers, BenchmarkResult, Metric, QABenchmark, Query, Score
from unidecouple.eval.records import BenchmarkRecord, read_records, unique
from unidecouple.eval.sources import find, hashes
from unidecouple.eval.statistics import ClusteredProportion
from unidecouple.eval.suite import Benchmark, BenchmarkOptions

NAME: Final = "multiple_choice"
JUDGE: Final = "log-likelihood"


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question as a query, and the number of the right one among its choices, from 0."""

    query: Query
    answer: int


def open_questions(data: Path | None, limit: int | None = None) -> QABenchmark:
    """The benchmark of the questions in ``data``, by default the shipped ones; with ``limit`` the first so many.

    Raises:
        ValueError: there are none, or a line is broken.
    """
    root = Path(str(files("unidecouple") / "assets")) if data is None else data
    paths = find(root, NAME, ("*.jsonl",))
    rows = [row for path in paths for row in read_records(path, ("question", "choices", "answer"))]
    names = [row.name("id") if row.has("id") else str(number) for number, row in enumerate(rows)]
    unique(rows, names, "id")
    items = [_read(row, name) for row, name in zip(rows, names, strict=True)][:limit]
    if not items:
        raise ValueError(f"{paths[0]} has no question: write lines with question, choices and answer")
    read = {} if data is None else hashes(paths, root)
    return QABenchmark(NAME, tuple(item.query for item in items), functools.partial(report, items), read)


def report(items: Sequence[ChoiceQuestion], answers: Answers) -> BenchmarkResult:
    """Both accuracies; the floor is what a choice at random gets."""
    read = [_likelihoods(item.query, answers[item.query.id]) for item in items]
    rules: dict[str, Callable[[str], int]] = {"accuracy": lambda choice: 1, "accuracy_norm": len}
    chance = sum(1 / len(item.query.choices) for item in items) / len(items)
    proportions, scores, ties = {}, [], 0
    for metric, size in rules.items():
        right = []
        for item, found in zip(items, read, strict=True):
            values = [value / size(choice) for value, choice in zip(found, item.query.choices, strict=True)]
            right.append((item.query.id, float(values.index(max(values)) == item.answer)))
            ties += metric == "accuracy" and values.count(max(values)) > 1
        proportions[metric] = ClusteredProportion.of(right)
        scores.append(Score(NAME, metric, proportions[metric].mean, JUDGE, 1.0, chance))
    return BenchmarkResult(tuple(scores), proportions, {"equal choices": ties})


def _read(row: BenchmarkRecord, name: str) -> ChoiceQuestion:
    choices = tuple(row.plain("choices", choice) for choice in row.listed("choices"))
    if len(set(choices)) < max(2, len(choices)):
        row.fail(f"'choices' has {len(set(choices))} different ones of {len(choices)}; give at least two, all different")
    answer = row.count("answer")
    if answer >= len(choices):
        row.fail(f"'answer' is {answer}, but the choices are numbered 0 to {len(choices) - 1}")
    return ChoiceQuestion(Query(name, f"Question: {row.text('question').strip()}\nAnswer:", None, row.where, choices), answer)


def _likelihoods(query: Query, answer: str) -> list[float]:
    """Log-likelihood of each choice, as ``EvalModel.ask`` writes them."""
    try:
        found = [float(word) for word in answer.split()]
    except ValueError:
        found = []
    if len(found) != len(query.choices) or not all(map(math.isfinite, found)):
        raise ValueError(f"{query.where or query.id}: {answer!r} is no log-likelihood for each of {len(query.choices)} choices")
    return found


def _open(options: BenchmarkOptions) -> QABenchmark:
    return open_questions(options.data, options.limit)


_METRICS: Final = (Metric(NAME, "accuracy", "Multiple choice", LANGUAGE),)
BENCHMARK: Final = Benchmark(NAME, _METRICS, _open)
