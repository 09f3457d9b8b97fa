"""Scores a model during and after training, by the benchmarks' own protocols."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from unidecouple.data.sequences import SequenceBuilder
from unidecouple.eval.benchmark import Score
from unidecouple.eval.geneval import Bounds, Verdict
from unidecouple.eval.suite import TEST_SEED
from unidecouple.files import atomic_directory, write_json_atomic
from unidecouple.generate.image import Sampling, draw
from unidecouple.generate.text import answer
from unidecouple.models.base import UnifiedModel
from unidecouple.run import Evaluation
from unidecouple.world import geneval, pope, vqa
from unidecouple.world.judge import TemplateJudge
from unidecouple.world.prompts import TAGS, spread
from unidecouple.world.settings import SyntheticEvaluation

VALIDATION_SEED = 72
SAMPLES_SHOWN = 3
"""Prompts a tag whose first picture is kept for the report."""


@dataclass(frozen=True)
class Scorer:
    """Scores models by ``evaluation`` on sets of ``sizes``; ``builder`` is the models' sequence builder."""

    evaluation: Evaluation
    sizes: SyntheticEvaluation
    builder: SequenceBuilder

    def validate(self, model: UnifiedModel) -> list[Score]:
        """Few questions and validation prompts, one picture each: for curves during training. Test sets are not touched."""
        size, parser = self.sizes, self.evaluation.parser
        understood = functools.partial(self._answer, model)
        scores = [row for row in pope.evaluate(understood, size.eval_images, VALIDATION_SEED, parser) if row.metric == "accuracy"]
        scores += [row for row in vqa.evaluate(understood, 2 * size.eval_images, VALIDATION_SEED) if row.metric == "accuracy"]
        result = geneval.generate_and_score(
            functools.partial(self._paint, model),
            TemplateJudge(),
            spread("val", size.eval_prompts),
            1,
            VALIDATION_SEED,
            bounds=_NO_BOUNDS,
        )
        return scores + [row for row in result.scores if row.metric == "overall"]

    def test(self, model: UnifiedModel, folder: Path) -> list[Score]:
        """The whole test sets; also writes ``samples.json`` and pictures for the report into ``folder``."""
        size, parser = self.sizes, self.evaluation.parser
        understood = functools.partial(self._answer, model)
        scores = pope.evaluate(understood, size.pope_images, TEST_SEED, parser)
        scores += vqa.evaluate(understood, size.vqa_questions, TEST_SEED)
        prompts = spread("test", size.prompts_per_tag)
        kept: list[list[np.ndarray]] = []

        def paint(texts: Sequence[str], num_images: int, seed: int) -> list[list[np.ndarray]]:
            kept.extend(self._paint(model, texts, num_images, seed))
            return kept

        bounds = test_bounds(size.prompts_per_tag)
        result = geneval.generate_and_score(paint, TemplateJudge(), prompts, size.num_images, TEST_SEED, bounds=bounds)
        _keep_samples(folder, result.verdicts, kept)
        return scores + list(result.scores)

    def _answer(self, model: UnifiedModel, images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        return answer(model, self.builder, images, questions)

    def _paint(self, model: UnifiedModel, prompts: Sequence[str], num_images: int, seed: int) -> list[list[np.ndarray]]:
        chosen = self.evaluation
        sampling = Sampling(chosen.guidance_scale, chosen.temperature, chosen.top_k)
        return draw(model, self.builder, prompts, num_images, seed, sampling)


@functools.cache
def test_bounds(prompts_per_tag: int) -> Bounds:
    """Ceiling and floor of the judge on the test prompts (ground-truth renders)."""
    return geneval.judge_bounds(TemplateJudge(), spread("test", prompts_per_tag), TEST_SEED, 1)


_NO_BOUNDS = Bounds(
    dict.fromkeys([*TAGS, "overall", "images", "prompts"], 1.0), dict.fromkeys([*TAGS, "overall", "images", "prompts"], 0.0)
)


def _keep_samples(folder: Path, verdicts: Sequence[Verdict], pictures: Sequence[Sequence[np.ndarray]]) -> None:
    """First pictures of the first prompts of each tag, with what the judge says of them."""
    shown = [v for tag in TAGS for v in [v for v in verdicts if v.tag == tag and v.image == 0][:SAMPLES_SHOWN]]
    with atomic_directory(folder / "samples", internal=True) as staging:
        for number, verdict in enumerate(shown):
            Image.fromarray(pictures[verdict.prompt][verdict.image]).save(staging / f"{number:02d}.png")
    rows = [
        {"prompt": v.text, "tag": v.tag, "file": f"samples/{number:02d}.png", "correct": v.correct, "reason": v.reason}
        for number, v in enumerate(shown)
    ]
    write_json_atomic(folder / "samples.json", rows)
