"""POPE (arXiv 2305.10355, MIT) over generated scenes: the official sampler and question schema.

Deviations: negatives are sampled with a numpy generator, not Python's ``random``; the article fits the noun without also turning
"image" into "imange"; where the official fallback would loop for ever because no class is left, we raise.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from unidecouple.eval import pope_files
from unidecouple.eval.benchmark import Answers, BenchmarkResult, QABenchmark, Query, Score
from unidecouple.eval.pope import CHANCE, PARSERS, PopeQuestion, known_parser, measure_answers, score_pope
from unidecouple.eval.suite import BenchmarkOptions
from unidecouple.world import questions
from unidecouple.world.art import drawings
from unidecouple.world.scene import Scene, Sprites, random_distinct_scene, render
from unidecouple.world.sprites import sprite

SPLITS: tuple[str, ...] = ("random", "popular", "adversarial")
POSITIVES = 3
_SET_STREAM = 1


@dataclass(frozen=True)
class PopeSet:
    """Scenes and, split by split, six questions about each; ``image`` is a scene's number, and the splits share their positives."""

    scenes: tuple[Scene, ...]
    questions: tuple[PopeQuestion, ...]


def pope_set(num_images: int, seed: int) -> PopeSet:
    """A POPE set over ``num_images`` themed scenes of 3 or 4 different classes; equal seeds give equal sets.

    Raises:
        ValueError: so few images that some image leaves no class to ask a negative for.
    """
    rng = np.random.default_rng([_SET_STREAM, seed])
    scenes = tuple(random_distinct_scene(rng, int(rng.integers(POSITIVES, POSITIVES + 2))) for _ in range(num_images))
    objects = [scene.names for scene in scenes]
    return PopeSet(scenes, tuple(question for split in SPLITS for question in sample(objects, split, rng)))


def sample(objects: Sequence[Sequence[str]], split: str, rng: np.random.Generator) -> tuple[PopeQuestion, ...]:
    """The official sampler: for the first three objects of each image, in list order, a positive and then a negative.

    A negative is neither in the image nor asked before of it. "popular" takes the most frequent such class over all images,
    "adversarial" the one that most often comes with the positive; both fall back to "random", sampled from all classes seen.

    Args:
        objects: the classes of each image (at least three different ones).
        split: one of ``SPLITS``.
        rng: random number generator.

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
            out += [_question(split, scene, positive, "yes"), _question(split, scene, negative, "no")]
    return tuple(out)


def pope_benchmark(num_images: int, seed: int, parser: str = "official", drawing: Sprites = sprite) -> QABenchmark:
    """The benchmark of ``pope_set``; the splits share their positives, which are asked once.

    Raises:
        ValueError: unknown parser, or too few images (see ``sample``).
    """
    known_parser(parser)
    asked = pope_set(num_images, seed)
    images = [render(scene, drawing) for scene in asked.scenes]
    queries = {item.id: Query(item.id, item.text, images[int(item.image)]) for item in asked.questions}
    return QABenchmark("pope", tuple(queries.values()), functools.partial(score, asked, parser))


def score(asked: PopeSet, parser: str, answers: Answers) -> BenchmarkResult:
    """Scores of ``answers``, and "accuracy/blind", the pooled accuracy of ``blind_answers``."""
    blind = measure_answers([item.label for item in asked.questions], blind_answers(asked), PARSERS[parser])["accuracy"]
    return score_pope(asked.questions, parser, answers, Score("pope", "accuracy/blind", blind, parser, 1.0, CHANCE))


def blind_answers(asked: PopeSet) -> list[str]:
    """Answers without the image: "yes" for the more frequent half of the scenes' classes, else "no"."""
    ranked = _by_count(Counter(name for scene in asked.scenes for name in scene.names))
    common = set(ranked[: len(ranked) // 2])
    return ["yes" if item.id.split("/", 1)[1] in common else "no" for item in asked.questions]


def _question(split: str, scene: int, name: str, label: str) -> PopeQuestion:
    """Is a ``name`` in scene number ``scene``?"""
    return PopeQuestion(f"{scene:06d}/{name}", split, f"{scene:06d}", questions.pope(name, label == "yes").text, label)


def _co_occurrence(objects: Sequence[Sequence[str]]) -> dict[str, Counter[str]]:
    together: dict[str, Counter[str]] = {}
    for names in objects:
        for name in names:
            together.setdefault(name, Counter()).update(other for other in names if other != name)
    return together


def _by_count(counts: Counter[str]) -> list[str]:
    """Most frequent first; ties in the order of first appearance, as the official stable sort leaves them."""
    return [name for name, _ in counts.most_common()]


def _open(options: BenchmarkOptions) -> QABenchmark:
    parser = options.parser(PARSERS, "official")
    return pope_benchmark(options.limited(options.sizes.pope_images), options.seed, parser, drawings(options.art))


BENCHMARK: Final = replace(pope_files.BENCHMARK, open=_open)
