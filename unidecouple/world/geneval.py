"""GenEval over generated scenes: a judge's ceiling and floor on ground-truth renders, and a model's score by that judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unidecouple.eval.benchmark import Painter, Score, paint
from unidecouple.eval.geneval import Bounds, Verdict, bounds_of, judge_pictures, summarize, write_folder
from unidecouple.eval.judges import Judge
from unidecouple.world.prompts import Prompt, scene_of
from unidecouple.world.scene import render

_BOUNDS_STREAM = 3
_BATCH = 128

Transform = Callable[[np.ndarray], np.ndarray]
"""uint8 pictures (N, H, W, 3) -> the same shape and type, for example through an image tokenizer and back."""


@dataclass(frozen=True)
class GenEvalResult:
    """Scores, and the verdict on each picture in order of prompt and picture."""

    scores: tuple[Score, ...]
    verdicts: tuple[Verdict, ...]


def generate_and_score(
    painter: Painter,
    judge: Judge,
    prompts: Sequence[Prompt],
    num_images: int = 4,
    seed: int = 0,
    folder: Path | None = None,
    bounds: Bounds | None = None,
) -> GenEvalResult:
    """Paint every prompt and score the pictures.

    Args:
        painter: the model.
        judge: detector and colour classifier.
        prompts: of ``world.prompts.held_out``.
        num_images: pictures a prompt (the protocol has 4).
        seed: seed of the painter, and of the ground-truth scenes of the bounds.
        folder: where to write the pictures in GenEval's layout; nowhere if None.
        bounds: the result of ``judge_bounds`` if it is known; measured here if None.

    Raises:
        ValueError: see ``paint``, ``write_folder`` and ``judge_bounds``.
    """
    metadata = [prompt.to_json() for prompt in prompts]
    pictures = paint(painter, [prompt.text for prompt in prompts], num_images, seed)
    if folder is not None:
        write_folder(folder, metadata, pictures)
    verdicts = judge_pictures(judge, metadata, pictures)
    known = bounds or judge_bounds(judge, prompts, seed, num_images)
    rows = (
        Score("geneval", metric, value, judge.name, known.ceiling[metric], known.floor[metric])
        for metric, value in summarize(verdicts).items()
    )
    return GenEvalResult(tuple(rows), tuple(verdicts))


def judge_bounds(
    judge: Judge, prompts: Sequence[Prompt], seed: int = 0, num_images: int = 4, transform: Transform | None = None
) -> Bounds:
    """Ceiling and floor of ``judge``: ``num_images`` ground-truth renders a prompt, judged against it and against another.

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
