"""Scores of a run on users' own files: how likely held-out answers and image tokens are, and published benchmarks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import torch

from unidecouple.batch import Task
from unidecouple.data.file_batches import FileBatches, indices_of
from unidecouple.data.formats import Kind, open_source
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.data.settings import Files
from unidecouple.eval.benchmark import AnyBenchmark, Score
from unidecouple.eval.card import EvalSetup
from unidecouple.eval.model import EvalModel
from unidecouple.eval.session import EvalSession
from unidecouple.eval.suite import TEST_SEED, BenchmarkOptions, open_benchmarks
from unidecouple.generate.sampling import SamplingParams
from unidecouple.models.base import UnifiedModel
from unidecouple.models.processing import UnifiedProcessor
from unidecouple.models.vq import ImageTokenizer
from unidecouple.run import Evaluation
from unidecouple.train.held_out_samples import keep_samples

BENCHMARKS = {"mmu": "answers", "t2i": "image_tokens"}
"""Name of the score of each task."""
TEXT: Final = "text"
"""Name of the score of text-only records."""

_KINDS: Final[tuple[Kind, ...]] = ("mmu", TEXT)

MAX_NEW_TOKENS = 32
"""Longest answer to a published benchmark, as ``unidecouple eval`` has it."""


@dataclass(frozen=True)
class ValidationLoss:
    """Mean log-probability per token (nats; higher is better) on ``source``'s files, by task.

    The ceiling is 0 (certain), the floor a uniform guess: minus the logarithm of the number of tokens to choose from. It compares
    checkpoints of one model; it does not measure the quality of generated text or images.

    Attributes:
        source: held-out batches, with the batch size of each task.
        batches: how many per task.
        benchmarks: published ones that ``test`` scores, too.
        num_samples: see ``Evaluation``.
        sampling: of their image tokens.
        text: held-out batches of text-only records, where ``source`` has some beside those about images. They count in "answers" as
            well.
    """

    source: FileBatches
    batches: int
    processor: UnifiedProcessor
    benchmarks: tuple[AnyBenchmark, ...] = ()
    num_samples: int = 0
    sampling: SamplingParams = field(default_factory=SamplingParams)
    text: FileBatches | None = None

    def validate(self, model: UnifiedModel) -> list[Score]:
        """Return one score per task, and one of text alone where there is some, always over the same samples."""
        scores = [self._score(model, self.source, task, BENCHMARKS[task.key]) for task in self.source.tasks]
        return scores if self.text is None else [*scores, self._score(model, self.text, Task.MMU, TEXT)]

    def test(self, model: UnifiedModel, folder: Path) -> list[Score]:
        """Score as ``validate``, then on the published benchmarks, with answers and cards in ``folder/eval``."""
        scores = self.validate(model)
        scored = EvalModel(model, self.processor, MAX_NEW_TOKENS, self.sampling, TEST_SEED)
        if self.num_samples:
            keep_samples(scored, self.source, self.num_samples, folder)
        settings = {"max_new_tokens": MAX_NEW_TOKENS}
        setup = EvalSetup(str(folder), {}, settings, str(model.dtype).removeprefix("torch."), str(model.device))
        session = EvalSession(folder / "eval", setup)
        for benchmark in self.benchmarks:
            session.run(benchmark, scored)
            scores += result.scores if (result := session.score(benchmark)) else ()
        return scores

    @torch.no_grad()
    def _score(self, model: UnifiedModel, source: FileBatches, task: Task, name: str) -> Score:
        size = source.files.batch_size(task)
        total, count = 0.0, 0
        for key in range(self.batches):
            batch = tuple(part.to(model.device) for part in source.task_batch(task, size, key))
            part = getattr(model(batch=batch), task.key)
            total, count = total + float(part.total), count + int(part.count)
        choices = model.num_codes if task is Task.T2I else model.config.text_config.vocab_size
        return Score(name, "log_probability", -total / max(1, count), ceiling=0.0, floor=-math.log(choices))


def open_validation(
    files: Files,
    evaluation: Evaluation,
    processor: UnifiedProcessor,
    builder: SequenceBuilder,
    vq: ImageTokenizer,
    cache: Path,
) -> ValidationLoss:
    """Open ``files.validation``, without prompt dropout, and ``evaluation.benchmarks`` for scoring.

    Raises:
        ValueError: there are no such files, or they lack a task that ``files`` trains, or a benchmark's files are missing.
    """
    aside = files.held_out
    if aside is None:
        raise ValueError("data.validation is empty: name held-out sources, so that scores are not of what was trained on")
    opened = [open_benchmarks([name], BenchmarkOptions(data=data)) for name, data in evaluation.benchmarks.items()]
    benchmarks = tuple(benchmark for (benchmark,) in opened)
    there = _tasks_in(aside, cache / "files")
    text = aside.mmu_batch_size and all(Task.MMU in _tasks_in(replace(aside, kinds=(kind,)), cache / "files") for kind in _KINDS)
    if size := evaluation.eval_batch_size:
        mmu, t2i = (size if task in there else 0 for task in Task)
        aside = replace(aside, mmu_batch_size=mmu, t2i_batch_size=t2i)
    return ValidationLoss(
        FileBatches(aside, processor, builder, 0, vq, cache / "files"),
        evaluation.eval_batches,
        processor,
        benchmarks,
        evaluation.num_samples,
        evaluation.sampling,
        FileBatches(replace(aside, kinds=(TEXT,), t2i_batch_size=0), processor, builder, 0, vq, cache / "files") if text else None,
    )


def _tasks_in(files: Files, cache: Path) -> list[Task]:
    """Tasks that ``files`` have records of."""
    opened = [tuple(open_source(source, cache)) for source in files.sources]
    return [task for task in Task if any(len(index) for _, index in indices_of(files, opened, task, cache))]
