"""GenEval over generated scenes: a judge's ceiling and floor on ground-truth renders, and a model's score by that judge."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from unidecouple.eval import geneval_files
from unidecouple.eval.benchmark import GenerationBenchmark
from unidecouple.eval.geneval import JudgeBounds, bounds_of
from unidecouple.eval.geneval_files import geneval_benchmark
from unidecouple.eval.judges import Judge
from unidecouple.eval.suite import BenchmarkOptions
from unidecouple.world.judge import TemplateJudge
from unidecouple.world.prompts import Prompt, scene_of, spread
from unidecouple.world.scene import render

_BOUNDS_STREAM = 3
_BATCH = 128

ImageTransform = Callable[[np.ndarray], np.ndarray]
"""uint8 images (N, H, W, 3) -> the same shape and type, for example through an image tokenizer and back."""


def synthetic_geneval(
    split: str, per_tag: int, num_images: int, bounds: Callable[[], JudgeBounds] | None = None
) -> GenerationBenchmark:
    """``per_tag`` held-out prompts of each tag ("val" or "test"), judged by ``TemplateJudge``."""
    metadata = [prompt.to_json() for prompt in spread(split, per_tag)]
    return geneval_benchmark(metadata, num_images, TemplateJudge(), bounds)


@functools.cache
def template_bounds(per_tag: int, seed: int) -> JudgeBounds:
    """Ceiling and floor of ``TemplateJudge`` on the test prompts; ``seed`` is of the ground-truth renders, one per prompt."""
    return judge_bounds(TemplateJudge(), spread("test", per_tag), seed, 1)


def judge_bounds(
    judge: Judge, prompts: Sequence[Prompt], seed: int = 0, num_images: int = 4, transform: ImageTransform | None = None
) -> JudgeBounds:
    """Ceiling and floor of ``judge``: ``num_images`` ground-truth renders per prompt, judged against it and against another.

    With ``transform`` (an image tokenizer and back) the ceiling is the most that any model with this tokenizer can reach.

    Raises:
        ValueError: a tag whose prompts all ask for the same, so that no other prompt can serve as a floor.
    """
    rng = np.random.default_rng([_BOUNDS_STREAM, seed])
    renders = np.stack([render(scene_of(prompt, rng)) for prompt in prompts for _ in range(num_images)])
    if transform is not None:
        renders = np.concatenate([transform(renders[at : at + _BATCH]) for at in range(0, len(renders), _BATCH)])
    pictures = [list(renders[at : at + num_images]) for at in range(0, len(renders), num_images)]
    return bounds_of(judge, [prompt.to_json() for prompt in prompts], pictures)


def _open(options: BenchmarkOptions) -> GenerationBenchmark:
    per_tag = options.limited(options.sizes.prompts_per_tag)
    return synthetic_geneval("test", per_tag, options.sizes.num_images, functools.partial(template_bounds, per_tag, options.seed))


BENCHMARK: Final = replace(geneval_files.BENCHMARK, open=_open)
