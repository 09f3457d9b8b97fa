"""Count, colour and position questions about generated scenes, by exact match.

A question kind has few answers, so the share of its most frequent one (what a model that never looks can reach) is far above
zero and is printed as the floor.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from unidecouple.data.sequences import QAPair
from unidecouple.eval import vqa_files
from unidecouple.eval.benchmark import Answers, BenchmarkResult, QABenchmark, Query, Score
from unidecouple.eval.statistics import ClusteredProportion
from unidecouple.eval.suite import BenchmarkOptions
from unidecouple.eval.vqa_rules import EXACT, normalize
from unidecouple.world.art import drawings
from unidecouple.world.questions import vqa
from unidecouple.world.scene import Scene, Sprites, random_scene, render
from unidecouple.world.sprites import sprite

KINDS: tuple[str, ...] = ("count", "color", "position")
_SET_STREAM = 2


@dataclass(frozen=True)
class VqaItem:
    """A question about number ``scene`` of the set's scenes."""

    scene: int
    question: QAPair


@dataclass(frozen=True)
class VqaSet:
    """Scenes and the questions about them, equally many of each of ``KINDS``."""

    scenes: tuple[Scene, ...]
    items: tuple[VqaItem, ...]


def vqa_set(questions_per_kind: int, seed: int) -> VqaSet:
    """Random scenes until every kind has ``questions_per_kind`` questions, at most one of a kind per scene.

    Raises:
        ValueError: ``questions_per_kind`` is below 1.
    """
    if questions_per_kind < 1:
        raise ValueError(f"questions_per_kind is {questions_per_kind}; it must be at least 1")
    rng = np.random.default_rng([_SET_STREAM, seed])
    scenes: list[Scene] = []
    found: dict[str, list[VqaItem]] = {kind: [] for kind in KINDS}
    while any(len(items) < questions_per_kind for items in found.values()):
        scene = random_scene(rng)
        pool = vqa(scene)
        for kind, items in found.items():
            possible = [question for question in pool if question.kind == kind]
            if possible and len(items) < questions_per_kind:
                items.append(VqaItem(len(scenes), possible[int(rng.integers(len(possible)))]))
        scenes.append(scene)
    return VqaSet(tuple(scenes), tuple(item for kind in KINDS for item in found[kind]))


def vqa_benchmark(questions_per_kind: int, seed: int, drawing: Sprites = sprite) -> QABenchmark:
    """The benchmark of ``vqa_set``.

    Raises:
        ValueError: ``questions_per_kind`` is below 1.
    """
    asked = vqa_set(questions_per_kind, seed)
    images = [render(scene, drawing) for scene in asked.scenes]
    queries = [Query(str(number), item.question.text, images[item.scene]) for number, item in enumerate(asked.items)]
    return QABenchmark("vqa", tuple(queries), functools.partial(score, asked.items))


def score(items: Sequence[VqaItem], answers: Answers) -> BenchmarkResult:
    """Rows "accuracy/<kind>" with the mode baseline of the kind as floor, then "accuracy", the mean of the kinds.

    Scenes are the clusters of the intervals; ``answers`` are by the items' numbers.

    Raises:
        ValueError: a kind without items.
    """
    right = [(item, float(normalize(answers[str(number)]) == item.question.answer)) for number, item in enumerate(items)]
    rows: list[Score] = []
    proportions: dict[str, ClusteredProportion] = {}
    for kind in KINDS:
        mine = [(item, value) for item, value in right if item.question.kind == kind]
        if not mine:
            raise ValueError(f"there is no {kind} question; use a set of vqa_set, which has all of {', '.join(KINDS)}")
        mode = Counter(item.question.answer for item, _ in mine).most_common(1)[0][1] / len(mine)
        mean = sum(value for _, value in mine) / len(mine)
        rows.append(Score("vqa", f"accuracy/{kind}", mean, EXACT, 1.0, mode))
        proportions[f"accuracy/{kind}"] = ClusteredProportion.of((item.scene, value) for item, value in mine)
    mean = float(np.mean([row.value for row in rows]))
    floor = float(np.mean([row.floor for row in rows if row.floor is not None]))
    proportions["accuracy"] = ClusteredProportion.of((item.scene, value) for item, value in right)
    return BenchmarkResult((*rows, Score("vqa", "accuracy", mean, EXACT, 1.0, floor)), proportions)


def _open(options: BenchmarkOptions) -> QABenchmark:
    return vqa_benchmark(options.limited(options.sizes.vqa_questions), options.seed, drawings(options.art))


BENCHMARK: Final = replace(vqa_files.BENCHMARK, open=_open)
