"""Where a run's batches come from: the world, or users' own files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from unidecouple.batch import JointBatch, Task
from unidecouple.data.file_batches import FileBatches
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.data.world.dataset import Progress
from unidecouple.models.base import UnifiedModel
from unidecouple.models.processing import UnifiedProcessor
from unidecouple.run import RunConfig
from unidecouple.train.batches import world_batches


class BatchSource(Protocol):
    """Batches as a function of (seed, step): a resumed run needs no position in the data, and no re-reading."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks that the run has data of."""

    @property
    def measurable(self) -> tuple[Task, ...]:
        """Tasks that ``task_batch`` draws."""

    def batch(self, step: int, part: int = 0, of: int = 1, tasks: Sequence[Task] = tuple(Task)) -> JointBatch:
        """One ``part`` ``of`` the joint batch of ``step``; only what is of ``tasks``."""

    def task_batch(self, task: Task, size: int, key: int) -> JointBatch:
        """A batch of one task for measurements, in an order that training does not use."""

    def distinct_samples(self, task: Task, most: int) -> int:
        """How many samples of ``distinct_batch`` come, up to ``most``, before a record comes again."""

    def distinct_batch(self, task: Task, size: int, key: int) -> JointBatch:
        """As ``task_batch``; no two of the first ``distinct_samples`` are of one record."""


def open_source(
    run: RunConfig,
    model: UnifiedModel,
    processor: UnifiedProcessor,
    builder: SequenceBuilder,
    cache: Path,
    progress: Progress,
) -> BatchSource:
    """The data that ``run`` trains on.

    Raises:
        ValueError: files are missing, of no known format, or without records of a task.
        BadDataError: too many records cannot be parsed.
    """
    if run.files is None:
        return world_batches(run.data, model, builder, run.seed, cache, progress)
    files, longest = run.files, model.config.text_config.max_position_embeddings
    if not files.pack:  # packed rows may be longer than the model takes: positions start again with each sequence
        files = replace(files, max_length=min(files.max_length, longest))
    return FileBatches(files, processor, builder, run.seed, model.model.vqmodel, cache / "files")
