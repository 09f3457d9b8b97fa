"""Generate, then answer: does an auxiliary image that the model generates first make its answers better?

Protocol of UniG2U-Bench's ``visual_cot`` tasks (lmms-eval, ``generate_visual_cot``): the model generates an image from a question's
images and a prompt, then answers about all of them, the generated one last. Ours asks the same questions under more conditions, so
that what an image is worth can be separated from what this model's image is worth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from unidecouple.eval.benchmark import NONE, Answers, BenchmarkResult, Score
from unidecouple.eval.statistics import ClusteredProportion, RatioOfSums
from unidecouple.eval.vqa_rules import normalize

NAME: Final = "visual_cot"


@dataclass(frozen=True)
class CotItem:
    """A question's id and kind, its correct answer, and the rule ``correct(answer, gold)`` of its kind."""

    id: str
    kind: str
    gold: str
    correct: Callable[[str, str], bool]


def exactly(answer: str, gold: str) -> bool:
    """Exact match after ``vqa_rules.normalize``."""
    return normalize(answer) == gold


def compare_conditions(items: Sequence[CotItem], answers: Mapping[str, Answers], judge: str) -> BenchmarkResult:
    """Rows "accuracy/<condition>", "gain/<condition>" and "accuracy/<condition>/<kind>".

    A gain is the mean difference of the same questions' values with and without the condition's auxiliary image, with Student's t
    interval over questions. The floor is what the most frequent correct answer of each kind gets.

    Args:
        items: the questions.
        answers: condition -> answers to all of them.
        judge: name of the rules, in the rows.
    """
    right = {name: [float(item.correct(given[item.id], item.gold)) for item in items] for name, given in answers.items()}
    kinds = {kind: [at for at, item in enumerate(items) if item.kind == kind] for kind in dict.fromkeys(i.kind for i in items)}
    modes = {kind: Counter(items[at].gold for at in mine).most_common(1)[0][1] / len(mine) for kind, mine in kinds.items()}
    floor = sum(modes[item.kind] for item in items) / len(items)
    rows: list[Score] = []
    proportions: dict[str, ClusteredProportion | RatioOfSums] = {}

    def add(metric: str, proportion: ClusteredProportion | RatioOfSums, lowest: float | None) -> None:
        rows.append(Score(NAME, metric, proportion.mean, judge, None if lowest is None else 1.0, lowest))
        proportions[metric] = proportion

    for name, values in right.items():
        add(f"accuracy/{name}", ClusteredProportion.of(enumerate(values)), floor)
    for name, values in right.items():
        if name != NONE:
            add(f"gain/{name}", RatioOfSums(tuple((new - old, 1.0) for new, old in zip(values, right[NONE], strict=True))), None)
    for name, values in right.items():
        for kind, mine in kinds.items():
            add(f"accuracy/{name}/{kind}", ClusteredProportion.of((at, values[at]) for at in mine), modes[kind])
    return BenchmarkResult(tuple(rows), proportions)
