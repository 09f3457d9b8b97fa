"""Data sources: the interface that training uses, and how a source is found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from unidecouple import plugins
from unidecouple.batch import JointBatch, Task
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.data.settings import DataSettings
from unidecouple.eval.answering import Progress
from unidecouple.eval.benchmark import Score
from unidecouple.run import RunConfig

if TYPE_CHECKING:
    from unidecouple.models.base import UnifiedModel
    from unidecouple.models.processing import UnifiedProcessor

__all__ = ["BatchSource", "DataSource", "PrintLine", "ProbeData", "Progress", "RunScorer", "SampleLengths", "data_source"]


class SampleLengths(NamedTuple):
    """What ``plan`` needs to know of a source's samples.

    Attributes:
        conversation: mean padded tokens of a batch of understanding samples.
        answers: mean tokens with a text target per understanding sample.
        prompt: mean padded tokens of a batch of prompts for images, source images among them.
        shown, sources: mean images per understanding sample, and source images per text-to-image sample.
    """

    conversation: int
    answers: float
    prompt: int
    shown: float
    sources: float


PrintLine = Callable[[str], None]
"""Prints one line of text."""


class BatchSource(Protocol):
    """Batches as a function of (seed, step): a resumed run needs no position in the data, and no re-reading."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks that the run has data of."""

    @property
    def measurable(self) -> tuple[Task, ...]:
        """Tasks that ``task_batch`` has data of."""

    def batch(self, step: int, part: int = 0, of: int = 1, tasks: Sequence[Task] = tuple(Task)) -> JointBatch:
        """One ``part`` ``of`` the joint batch of ``step``, with samples of ``tasks`` only."""

    def task_batch(self, task: Task, size: int, key: int) -> JointBatch:
        """A batch of one task for measurements, in an order that training does not use."""

    def distinct_samples(self, task: Task, most: int) -> int:
        """How many samples of ``distinct_batch`` come, up to ``most``, before a record comes again."""

    def distinct_batch(self, task: Task, size: int, key: int) -> JointBatch:
        """As ``task_batch``; no two of the first ``distinct_samples`` are of one record."""


class RunScorer(Protocol):
    """Scores a run's model on the data of its source."""

    def validate(self, model: UnifiedModel) -> list[Score]:
        """Score on few validation samples: for curves during training."""

    def test(self, model: UnifiedModel, folder: Path) -> list[Score]:
        """Score on the whole test sets, and write what belongs to the scores into ``folder``."""


@dataclass(frozen=True)
class ProbeData:
    """What a diagnosis looks at.

    Attributes:
        run: whose source has batches of both tasks, no prompt dropped.
        described: whose source has images with words that describe them; the same where nothing better is known.
        text: in words, what the data are.
    """

    run: RunConfig
    described: RunConfig
    text: str


class DataSource(Protocol):
    """A kind of training data. A new one is a file and its line in ``plugins.DATA_SOURCES``."""

    @property
    def settings(self) -> type[DataSettings]:
        """Class of its ``RunConfig.data``, with ``kind``."""

    def open(
        self,
        run: RunConfig,
        model: UnifiedModel,
        processor: UnifiedProcessor,
        builder: SequenceBuilder,
        cache: Path,
        progress: Progress,
    ) -> BatchSource:
        """Open the data that ``run`` trains on; ``cache`` keeps what is computed once.

        Raises:
            ValueError: data are missing, of no known format, or without samples of a task.
        """

    def scorer(
        self, run: RunConfig, model: UnifiedModel, processor: UnifiedProcessor, builder: SequenceBuilder, cache: Path
    ) -> RunScorer:
        """Return what scores ``run``.

        Raises:
            ValueError: there are no data to score on, or ``run.evaluation`` does not fit this source.
        """

    def probe_data(self, run: RunConfig, processor: UnifiedProcessor) -> ProbeData:
        """Return the data of this kind that a model of ``run`` was not trained on.

        Raises:
            ValueError: the data do not fit the processor's model.
        """


def data_source(run: RunConfig) -> DataSource:
    """Return the data source that ``run`` names."""
    return cast(DataSource, plugins.found(plugins.DATA_SOURCES, run.data.kind))
