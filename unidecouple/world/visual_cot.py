"""The benchmark ``visual_cot``: questions after an edit, without and with an image of the result, which the model draws first."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from unidecouple.eval import visual_cot_files
from unidecouple.eval.benchmark import (
    ORACLE,
    WRONG,
    Answers,
    BenchmarkResult,
    GenerationBenchmark,
    Images,
    Query,
    Score,
    VisualCotBenchmark,
)
from unidecouple.eval.suite import BenchmarkOptions
from unidecouple.eval.visual_cot import NAME, CotItem, compare_conditions, exactly
from unidecouple.eval.vqa_rules import EXACT
from unidecouple.world.art import drawings
from unidecouple.world.edit_benchmark import benchmark_of
from unidecouple.world.edit_questions import EditQuestion, question_set
from unidecouple.world.scene import Sprites, render
from unidecouple.world.sprites import sprite


def visual_cot_benchmark(split: str, per_kind: int, seed: int, drawing: Sprites = sprite) -> VisualCotBenchmark:
    """``per_kind`` questions of each kind of edit about held-out edits of ``split`` ("val" or "test"), in the style of ``drawing``.

    The wrong image is the true one of the next question of the kind. "image" is the share of the model's own images that show the
    target scene, as ``edits`` scores them.

    Raises:
        ValueError: ``per_kind`` is below 2, which leaves no other question for the wrong image.
    """
    if per_kind < 2:
        raise ValueError(f"{NAME} has {per_kind} question of each kind; it needs 2, since one gets another's image")
    asked = question_set(split, per_kind, seed)
    targets = [render(one.edit.target, drawing) for one in asked]
    nexts = [start + (place + 1) % per_kind for start in range(0, len(asked), per_kind) for place in range(per_kind)]
    generation = benchmark_of([one.edit for one in asked], 1, drawing)
    queries = tuple(Query(str(number), one.question.text, render(one.edit.source, drawing)) for number, one in enumerate(asked))
    given = {ORACLE: targets, WRONG: [targets[other] for other in nexts]}
    return VisualCotBenchmark(NAME, queries, generation, functools.partial(_score, asked, generation), given)


def _score(
    asked: Sequence[EditQuestion], generation: GenerationBenchmark, answers: Mapping[str, Answers], own: Images
) -> BenchmarkResult:
    items = [CotItem(str(number), one.question.kind, one.question.answer, exactly) for number, one in enumerate(asked)]
    result = compare_conditions(items, answers, EXACT)
    if not own:
        return result
    drawn = generation.score_images(own)
    [row] = [row for row in drawn.scores if row.metric == "accuracy"]
    image = Score(NAME, "image", row.value, row.judge, row.ceiling, row.floor)
    return replace(
        result,
        scores=(*result.scores, image),
        proportions={**result.proportions, "image": drawn.proportions["accuracy"]},
        verdicts=drawn.verdicts,
    )


def _open(options: BenchmarkOptions) -> VisualCotBenchmark:
    size = options.limited(options.sizes.visual_cot_questions)
    return visual_cot_benchmark("test", size, options.seed, drawings(options.art))


BENCHMARK: Final = replace(visual_cot_files.BENCHMARK, open=_open)
