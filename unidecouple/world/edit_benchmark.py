"""The benchmark ``edits``: whether a generated image shows the target scene, object by object and nothing else."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from unidecouple.eval import edits as unscored
from unidecouple.eval.benchmark import BenchmarkResult, GenerationBenchmark, Images, ImageVerdict, Score
from unidecouple.eval.geneval import THRESHOLD
from unidecouple.eval.judges import Detection
from unidecouple.eval.statistics import ClusteredProportion, MeanOfProportions
from unidecouple.eval.suite import BenchmarkOptions
from unidecouple.world.art import drawings
from unidecouple.world.catalog import article
from unidecouple.world.edits import KINDS, Edit, edit_set
from unidecouple.world.judge import TemplateJudge
from unidecouple.world.scene import CELL_NAMES, Scene, Sprites, render
from unidecouple.world.sprites import sprite

Shown = tuple[str, str, str]
"""Class, colour and cell of an object."""


def edits_benchmark(split: str, per_kind: int, num_images: int, seed: int, drawing: Sprites = sprite) -> GenerationBenchmark:
    """``per_kind`` held-out edits of each kind ("val" or "test"), judged by ``TemplateJudge``.

    In another style than the training's, by ``drawing``, an object counts in either style.

    A row "accuracy/<kind>" is the share of images that show the target scene: every object with its class, colour and cell, and no
    other. "accuracy" is the mean of the kinds. The ceiling is what the judge gives to rendered targets; the floor, to the source
    image unchanged.
    """
    return benchmark_of(edit_set(split, per_kind, seed), num_images, drawing)


def benchmark_of(edits: Sequence[Edit], num_images: int, drawing: Sprites = sprite) -> GenerationBenchmark:
    """The benchmark of ``edits``."""
    judge = TemplateJudge(tuple(dict.fromkeys((sprite, drawing))))
    metadata = [_metadata(one) for one in edits]
    sources = tuple((render(one.source, drawing),) for one in edits)

    @functools.cache
    def bounds() -> tuple[dict[str, float], ...]:
        targets = [[render(one.target, drawing)] for one in edits]
        return tuple(_accuracies(judge_edits(edits, images, judge)) for images in (targets, sources))

    def score(images: Images) -> BenchmarkResult:
        return _result(judge_edits(edits, images, judge), *bounds())

    return GenerationBenchmark("edits", metadata, num_images, score, sources=sources)


def judge_edits(edits: Sequence[Edit], images: Images, judge: TemplateJudge) -> list[ImageVerdict]:
    """Verdict of ``judge`` on each image of ``images[i]`` against the target of ``edits[i]``."""
    every = [image for of_edit in images for image in of_edit]
    detections = iter(judge.detect_batch(every))
    verdicts = []
    for number, (one, of_edit) in enumerate(zip(edits, images, strict=True)):
        for copy, image in enumerate(of_edit):
            found = Counter(_shown(judge, image, detection) for detection in next(detections) if detection.confidence >= THRESHOLD)
            wanted = Counter(_objects(one.target))
            reasons = [f"lacks {_words(each)}" for each in wanted - found] + [f"has {_words(each)}" for each in found - wanted]
            verdicts.append(ImageVerdict(number, copy, one.kind, one.text, not reasons, "\n".join(sorted(reasons))))
    return verdicts


def _shown(judge: TemplateJudge, image: np.ndarray, detection: Detection) -> Shown:
    left, top, right, bottom = detection.box
    row, column = (top + bottom) * 2 // (2 * image.shape[0]), (left + right) * 2 // (2 * image.shape[1])
    return detection.name, judge.color(image, detection.box), CELL_NAMES[2 * min(int(row), 1) + min(int(column), 1)]


def _objects(scene: Scene) -> list[Shown]:
    return [(obj.name, obj.color, CELL_NAMES[obj.cell]) for obj in scene.objects]


def _words(shown: Shown) -> str:
    name, color, cell = shown
    return f"{article(color)} {color} {name} in the {cell}"


def _metadata(one: Edit) -> dict[str, Any]:
    """As GenEval's metadata, with the cells of both scenes."""
    include = [{"class": obj.name, "count": 1, "color": obj.color} for obj in one.target.objects]
    scenes = {"source": _objects(one.source), "target": _objects(one.target)}
    return {"tag": one.kind, "include": include, "prompt": one.text, **{k: [list(each) for each in v] for k, v in scenes.items()}}


def _accuracies(verdicts: Sequence[ImageVerdict]) -> dict[str, float]:
    kinds = [kind for kind in KINDS if any(v.tag == kind for v in verdicts)]
    found = {f"accuracy/{kind}": float(np.mean([v.correct for v in verdicts if v.tag == kind])) for kind in kinds}
    return {**found, "accuracy": float(np.mean([*found.values()]))}


def _result(verdicts: Sequence[ImageVerdict], ceiling: dict[str, float], floor: dict[str, float]) -> BenchmarkResult:
    """Score rows of ``verdicts``; edits are the clusters of the intervals."""
    means = _accuracies(verdicts)
    rows = tuple(Score("edits", name, mean, TemplateJudge.name, ceiling[name], floor[name]) for name, mean in means.items())
    kinds = {
        name: ClusteredProportion.of((v.prompt, float(v.correct)) for v in verdicts if f"accuracy/{v.tag}" == name)
        for name in means
        if name != "accuracy"
    }
    whole = MeanOfProportions(tuple(kinds.values()))
    return BenchmarkResult(rows, {**kinds, "accuracy": whole}, {}, tuple(verdicts))


def _open(options: BenchmarkOptions) -> GenerationBenchmark:
    size = options.limited(options.sizes.edits_per_kind)
    return edits_benchmark("test", size, options.sizes.num_images, options.seed, drawings(options.art))


BENCHMARK: Final = replace(unscored.BENCHMARK, open=_open)
