"""POPE (arXiv 2305.10355, MIT) over generated scenes: the official sampler and question schema.

Deviations: negatives are drawn with a numpy generator, not Python's ``random``; the article fits the noun without also turning
"image" into "imange"; where the official fallback would loop for ever because no class is left, we raise.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unidecouple.eval.benchmark import Answerer, Score, ask
from unidecouple.eval.pope import CHANCE, PARSERS, Parser, known_parser, measure_answers, rows
from unidecouple.world import questions
from unidecouple.world.scene import Scene, random_distinct_scene, render

SPLITS: tuple[str, ...] = ("random", "popular", "adversarial")
POSITIVES = 3
_SET_STREAM = 1

Answers = Mapping[tuple[int, str], str]
"""(scene index, class asked for) -> the model's answer."""


@dataclass(frozen=True)
class PopeQuestion:
    """One question: is a ``name`` in scene number ``scene``? ``label`` is "yes" or "no"."""

    question_id: int
    scene: int
    name: str
    label: str

    @property
    def text(self) -> str:
        """The question as it is put."""
        return questions.pope(self.name, self.label == "yes").text

    def to_json(self) -> dict[str, object]:
        """A line of POPE's JSONL files."""
        return {"question_id": self.question_id, "image": f"{self.scene:06d}.png", "text": self.text, "label": self.label}


@dataclass(frozen=True)
class PopeSet:
    """Scenes and, for each of ``SPLITS``, six questions a scene; the splits share their positives."""

    scenes: tuple[Scene, ...]
    questions: Mapping[str, tuple[PopeQuestion, ...]]


def pope_set(num_images: int, seed: int) -> PopeSet:
    """A POPE set over ``num_images`` themed scenes of 3 or 4 different classes; equal seeds give equal sets.

    Raises:
        ValueError: so few images that some image leaves no class to ask a negative for.
    """
    rng = np.random.default_rng([_SET_STREAM, seed])
    scenes = tuple(random_distinct_scene(rng, int(rng.integers(POSITIVES, POSITIVES + 2))) for _ in range(num_images))
    objects = [scene.names for scene in scenes]
    return PopeSet(scenes, {split: sample(objects, split, rng) for split in SPLITS})


def sample(objects: Sequence[Sequence[str]], split: str, rng: np.random.Generator) -> tuple[PopeQuestion, ...]:
    """The official sampler: for the first three objects of each image, in list order, a positive and then a negative.

    A negative is neither in the image nor asked before of it. "popular" takes the most frequent such class over all images,
    "adversarial" the one that most often comes with the positive; both fall back to "random", a draw over all classes seen.

    Args:
        objects: the classes of each image (at least three different ones).
        split: one of ``SPLITS``.
        rng: source of the random draws.

    Raises:
        ValueError: unknown split, an image of fewer than three classes, or no class left to ask for.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown POPE split {split!r}; known: {', '.join(SPLITS)}")
    frequency = Counter(name for names in objects for name in names)
    together = _co_occurrence(objects)
    out: list[PopeQuestion] = []
    for scene, names in enumerate(objects):
        if len(names) < POSITIVES:
            raise ValueError(f"image {scene} has {len(names)} objects; POPE needs at least {POSITIVES}")
        asked: set[str] = set(names)
        for positive in names[:POSITIVES]:
            ranked = {"random": [], "popular": _by_count(frequency), "adversarial": _by_count(together[positive])}[split]
            negative = next((name for name in ranked if name not in asked), None)
            if negative is None:
                pool = [name for name in frequency if name not in asked]
                if not pool:
                    raise ValueError(f"no class is left to ask image {scene} a negative for; use more images than {len(objects)}")
                negative = str(rng.choice(pool))
            asked.add(negative)
            out.append(PopeQuestion(len(out) + 1, scene, positive, "yes"))
            out.append(PopeQuestion(len(out) + 1, scene, negative, "no"))
    return tuple(out)


def write_jsonl(items: Iterable[PopeQuestion], path: Path) -> None:
    """Write questions in POPE's schema, one a line."""
    path.write_text("".join(json.dumps(item.to_json()) + "\n" for item in items), encoding="utf-8")


def evaluate(answerer: Answerer, num_images: int = 500, seed: int = 0, parser: str = "official") -> list[Score]:
    """POPE scores of ``answerer``: every metric pooled and per split ("accuracy/random"), and the blind baseline.

    Each different (image, question) is asked once, since the splits share their positives.
    """
    asked = pope_set(num_images, seed)
    images = [render(scene) for scene in asked.scenes]
    wanted = {(item.scene, item.name): item.text for split in SPLITS for item in asked.questions[split]}
    answers = ask(answerer, [images[scene] for scene, _ in wanted], list(wanted.values()))
    return score(asked, dict(zip(wanted, answers, strict=True)), parser)


def score(asked: PopeSet, answers: Answers, parser: str = "official") -> list[Score]:
    """Scores of ``answers``.

    Pooled metrics are over the questions of all three splits. "accuracy/blind" is the pooled accuracy of ``blind_answers``.

    Raises:
        ValueError: unknown parser.
    """
    known_parser(parser)
    pooled = [item for split in SPLITS for item in asked.questions[split]]
    groups = {"": pooled} | {f"/{split}": list(asked.questions[split]) for split in SPLITS}
    scores: list[Score] = []
    for suffix, items in groups.items():
        scores += rows(measure(items, answers, PARSERS[parser]), suffix, parser)
    blind = measure(pooled, blind_answers(asked), PARSERS[parser])["accuracy"]
    return [*scores, Score("pope", "accuracy/blind", blind, parser, 1.0, CHANCE)]


def measure(items: Sequence[PopeQuestion], answers: Answers, parser: Parser) -> dict[str, float]:
    """``measure_answers`` of ``items``."""
    return measure_answers([item.label for item in items], [answers[item.scene, item.name] for item in items], parser)


def blind_answers(asked: PopeSet) -> dict[tuple[int, str], str]:
    """Answers of a model that never looks: "yes" for the more frequent half of the scenes' classes, else "no"."""
    ranked = _by_count(Counter(name for scene in asked.scenes for name in scene.names))
    common = set(ranked[: len(ranked) // 2])
    items = [item for split in SPLITS for item in asked.questions[split]]
    return {(item.scene, item.name): "yes" if item.name in common else "no" for item in items}


def _by_count(counts: Counter[str]) -> list[str]:
    """Most frequent first; ties in the order of first appearance, as the official stable sort leaves them."""
    return [name for name, _ in counts.most_common()]


def _co_occurrence(objects: Sequence[Sequence[str]]) -> dict[str, Counter[str]]:
    together: dict[str, Counter[str]] = {}
    for names in objects:
        for name in names:
            together.setdefault(name, Counter()).update(other for other in names if other != name)
    return together
