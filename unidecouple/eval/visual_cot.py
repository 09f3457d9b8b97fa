"""Generate, then answer: does an auxiliary image that the model generates first make its answers better?

Protocol of UniG2U-Bench's ``visual_cot`` tasks (lmms-eval, ``generate_visual_cot``): the model generates an image from a question's
images and a prompt, then answers about all of them, the generated one last. Ours asks the same questions under more conditions, so
that what an image is worth can be separated from what this model's image is worth. Only the synthetic benchmark has them, since the
true image must be known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

from unidecouple.eval.benchmark import NONE, OWN, Answers, BenchmarkResult, Metric, Score
from unidecouple.eval.statistics import ClusteredProportion, RatioOfSums
from unidecouple.eval.suite import Benchmark, BenchmarkOptions
from unidecouple.eval.vqa_rules import EXACT, normalize

NAME: Final = "visual_cot"
ORACLE, WRONG = "oracle", "wrong"
"""Conditions with a given auxiliary image: the true one of the question, and that of another question."""


def compare_conditions(
    gold: Mapping[str, str], kinds: Mapping[str, str], answers: Mapping[str, Answers], judge: str = EXACT
) -> BenchmarkResult:
    """Rows "accuracy/<condition>", "gain/<condition>" and "accuracy/<condition>/<kind>", by exact match.

    A gain is the mean difference of the same questions' values with and without the condition's auxiliary image, with Student's t
    interval over questions. The floor is the most frequent answer of each kind.

    Args:
        gold: query's id -> correct answer.
        kinds: query's id -> kind.
        answers: condition -> answers to all queries.
        judge: name of the rule, in the rows.
    """
    right = {name: {one: float(normalize(given[one]) == gold[one]) for one in gold} for name, given in answers.items()}
    modes = {kind: _mode([gold[one] for one in gold if kinds[one] == kind]) for kind in dict.fromkeys(kinds.values())}
    floor = sum(modes[kinds[one]] for one in gold) / len(gold)
    rows: list[Score] = []
    proportions: dict[str, ClusteredProportion | RatioOfSums] = {}

    def add(metric: str, proportion: ClusteredProportion | RatioOfSums, lowest: float | None) -> None:
        rows.append(Score(NAME, metric, proportion.mean, judge, None if lowest is None else 1.0, lowest))
        proportions[metric] = proportion

    for name, values in right.items():
        add(f"accuracy/{name}", ClusteredProportion.of(values.items()), floor)
    for name, values in right.items():
        if name != NONE:
            add(f"gain/{name}", RatioOfSums(tuple((values[one] - right[NONE][one], 1.0) for one in gold)), None)
    for name, values in right.items():
        for kind, mode in modes.items():
            add(
                f"accuracy/{name}/{kind}", ClusteredProportion.of((one, v) for one, v in values.items() if kinds[one] == kind), mode
            )
    return BenchmarkResult(tuple(rows), proportions)


def _mode(answers: Sequence[str]) -> float:
    """Share of the most frequent answer."""
    return Counter(answers).most_common(1)[0][1] / len(answers)


def _open(options: BenchmarkOptions) -> NoReturn:
    raise ValueError(f"{NAME} exists on the synthetic benchmark only, whose auxiliary images are known: leave out --data")


_METRICS: Final = (
    Metric(NAME, f"accuracy/{OWN}", "Generate then answer", "mmu"),
    Metric(NAME, f"accuracy/{NONE}", "The same without auxiliary image", "mmu"),
    Metric(NAME, f"accuracy/{ORACLE}", "The same with the true image", "mmu"),
    Metric(NAME, f"accuracy/{WRONG}", "The same with a wrong image", "mmu"),
)
BENCHMARK: Final = Benchmark(NAME, _METRICS, _open)
