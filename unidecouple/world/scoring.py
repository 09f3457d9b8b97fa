"""Scores a model during and after training, by the benchmarks' own protocols."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from unidecouple.eval.benchmark import Images, ImageVerdict, Score, evaluate, generate
from unidecouple.eval.instructions import answer_instructions
from unidecouple.eval.language import open_passages
from unidecouple.eval.model import EvalModel
from unidecouple.eval.multiple_choice import open_questions
from unidecouple.eval.suite import TEST_SEED
from unidecouple.files import atomic_directory, write_json_atomic
from unidecouple.models.base import UnifiedModel
from unidecouple.models.processing import UnifiedProcessor
from unidecouple.run import Evaluation
from unidecouple.world.edit_benchmark import edits_benchmark
from unidecouple.world.geneval import synthetic_geneval, template_bounds
from unidecouple.world.new_words import score_new_words
from unidecouple.world.pope import pope_benchmark
from unidecouple.world.prompts import TAGS
from unidecouple.world.settings import SyntheticEvaluation
from unidecouple.world.visual_cot import visual_cot_benchmark
from unidecouple.world.vqa import vqa_benchmark

MAX_NEW_TOKENS = 6
"""Longest answer on the synthetic benchmarks, as ``unidecouple eval`` has it."""
VALIDATION_SEED = 72
_WORD_ITEMS = 12
"""Prompts, and questions of each kind, of each new word on the test set."""
SAMPLES_SHOWN = 3
"""Prompts per tag whose first image is kept for the report."""


@dataclass(frozen=True)
class Scorer:
    """Scores models of ``processor`` by ``evaluation`` on sets of ``sizes``; they were taught ``new_words`` of the new words."""

    evaluation: Evaluation
    sizes: SyntheticEvaluation
    processor: UnifiedProcessor
    new_words: int = 0

    def validate(self, model: UnifiedModel) -> list[Score]:
        """Headline metrics on few questions and validation prompts, one image each: for curves during training."""
        size = self.sizes
        scored = self._scored(model, VALIDATION_SEED)
        drawn = synthetic_geneval("val", size.eval_prompts, 1)
        results = [
            evaluate(pope_benchmark(size.eval_images, VALIDATION_SEED, self.evaluation.parser), scored),
            evaluate(vqa_benchmark(2 * size.eval_images, VALIDATION_SEED), scored),
            evaluate(drawn, scored),
        ]
        rows = [row for result in results for row in result.scores if row.metric in ("accuracy", "overall")]
        rows += [row for row in self._language(scored) if row.metric in ("log_probability", "accuracy")]
        return rows + self._new_words(scored, min(size.eval_prompts, _WORD_ITEMS), 1, "val")

    def test(self, model: UnifiedModel, folder: Path) -> list[Score]:
        """Scores on the whole test sets; writes ``samples.json`` and images for the report into ``folder``."""
        size = self.sizes
        scored = self._scored(model, TEST_SEED)
        bounds = functools.partial(template_bounds, size.prompts_per_tag, TEST_SEED)
        prompts = synthetic_geneval("test", size.prompts_per_tag, size.num_images, bounds)
        asked = evaluate(pope_benchmark(size.pope_images, TEST_SEED, self.evaluation.parser), scored).scores
        asked += evaluate(vqa_benchmark(size.vqa_questions, TEST_SEED), scored).scores
        asked += self._language(scored)
        if size.edits_per_kind:
            asked += evaluate(edits_benchmark("test", size.edits_per_kind, size.num_images, TEST_SEED), scored).scores
        if size.visual_cot_questions:
            asked += evaluate(visual_cot_benchmark("test", size.visual_cot_questions, TEST_SEED), scored).scores
        images = generate(scored, prompts)
        result = prompts.score_images(images)
        _keep_samples(folder, result.verdicts, images, answer_instructions(scored, self.sizes.instructions))
        return [*asked, *result.scores, *self._new_words(scored, _WORD_ITEMS, size.num_images, "test")]

    def _new_words(self, scored: EvalModel, per_word: int, num_images: int, split: str) -> list[Score]:
        """Scores of the words that the run taught; none where it taught none."""
        return score_new_words(scored, self.new_words, per_word, num_images, split, scored.seed) if self.new_words else []

    def _language(self, scored: EvalModel) -> tuple[Score, ...]:
        """Scores of the shipped English passages and questions, as many as are asked for."""
        opened = [open_passages(None, self.sizes.passages)] if self.sizes.passages else []
        opened += [open_questions(None, self.sizes.multiple_choice)] if self.sizes.multiple_choice else []
        return tuple(row for benchmark in opened for row in evaluate(benchmark, scored).scores)

    def _scored(self, model: UnifiedModel, seed: int) -> EvalModel:
        return EvalModel(model, self.processor, MAX_NEW_TOKENS, self.evaluation.sampling, seed)


def _keep_samples(folder: Path, verdicts: Sequence[ImageVerdict], images: Images, answered: Sequence[tuple[str, str]]) -> None:
    """The first images of the first prompts of each tag, with their verdicts, and instructions with their answers."""
    shown = [v for tag in TAGS for v in [v for v in verdicts if v.tag == tag and v.image == 0][:SAMPLES_SHOWN]]
    with atomic_directory(folder / "samples", internal=True) as staging:
        for number, verdict in enumerate(shown):
            Image.fromarray(images[verdict.prompt][verdict.image]).save(staging / f"{number:02d}.png")
    rows = [
        {"prompt": v.text, "tag": v.tag, "file": f"samples/{number:02d}.png", "correct": v.correct, "reason": v.reason}
        for number, v in enumerate(shown)
    ]
    said = [{"prompt": p, "tag": "instruction", "correct": None, "reason": "", "answer": answer} for p, answer in answered]
    write_json_atomic(folder / "samples.json", rows + said)
