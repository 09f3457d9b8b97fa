"""Count, colour and position questions about generated scenes, by exact match.

A question kind has few answers, so the share of its most frequent one (what a model that never looks can reach) is far above
zero and is printed as the floor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unidecouple.data.sequences import QAPair
from unidecouple.eval.benchmark import Answerer, Score, ask
from unidecouple.eval.vqa_rules import EXACT, normalize
from unidecouple.world.questions import vqa
from unidecouple.world.scene import Scene, random_scene, render

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
    """Random scenes until every kind has ``questions_per_kind`` questions, at most one of a kind a scene.

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


def evaluate(answerer: Answerer, questions_per_kind: int = 500, seed: int = 0) -> list[Score]:
    """Accuracy of ``answerer`` per kind and their mean (see ``score``)."""
    asked = vqa_set(questions_per_kind, seed)
    images = [render(scene) for scene in asked.scenes]
    answers = ask(answerer, [images[item.scene] for item in asked.items], [item.question.text for item in asked.items])
    return score(asked.items, answers)


def score(items: Sequence[VqaItem], answers: Sequence[str]) -> list[Score]:
    """Rows "accuracy/<kind>" with the mode baseline of the kind as floor, then "accuracy", the mean of the kinds.

    Raises:
        ValueError: not one answer an item, or a kind without items.
    """
    rows: list[Score] = []
    for kind in KINDS:
        pairs = [
            (normalize(answer), item.question.answer)
            for item, answer in zip(items, answers, strict=True)
            if item.question.kind == kind
        ]
        if not pairs:
            raise ValueError(f"there is no {kind} question; use a set of vqa_set, which has all of {', '.join(KINDS)}")
        right = sum(given == gold for given, gold in pairs) / len(pairs)
        mode = Counter(gold for _, gold in pairs).most_common(1)[0][1] / len(pairs)
        rows.append(Score("vqa", f"accuracy/{kind}", right, EXACT, 1.0, mode))
    mean = float(np.mean([row.value for row in rows]))
    floor = float(np.mean([row.floor for row in rows if row.floor is not None]))
    return [*rows, Score("vqa", "accuracy", mean, EXACT, 1.0, floor)]
