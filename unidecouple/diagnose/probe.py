"""The interface of probes: what is measured in a checkpoint, and how its figures are drawn and read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from unidecouple.batch import JointBatch, Task
from unidecouple.figures.style import Plot
from unidecouple.source import BatchSource, Progress

if TYPE_CHECKING:
    from unidecouple.models.base import UnifiedModel

BATCH: Final = 16
"""Samples per batch."""
BatchOf = Callable[[Task, int], JointBatch]
"""Gives a batch of one task, by running number."""


@dataclass(frozen=True)
class ProbeInput:
    """A model and data to measure it on.

    Attributes:
        model: in eval mode, on its device.
        source: batches of a task for measurements.
        described: batches whose words describe their image; ``source`` where nothing better is known.
        step: of training, None where unknown.
        batches: batches per task that a measurement looks at.
        routing_log: records that the run wrote while training; empty where there are none.
    """

    model: UnifiedModel
    source: BatchSource
    described: BatchSource
    step: int | None = None
    batches: int = 8
    routing_log: Sequence[Mapping[str, Any]] = ()

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks that there is data of."""
        return self.source.measurable

    def batch(self, task: Task, size: int, number: int, described: bool = False) -> JointBatch:
        """Batch ``number`` of ``task`` on the model's device."""
        source = self.described if described else self.source
        return tuple(batch.to(self.model.device) for batch in source.task_batch(task, size, number))

    def distinct_batch(self, task: Task, size: int, number: int) -> JointBatch:
        """Batch ``number`` of ``task`` without the records of other numbers, on the model's device."""
        return tuple(batch.to(self.model.device) for batch in self.source.distinct_batch(task, size, number))


@dataclass(frozen=True)
class Skipped:
    """Why something was not measured, and what would help."""

    reason: str


ProbeResult = dict[str, Any] | Skipped
Drawn = list[tuple[str, Plot | None]]
"""(heading, figure) pairs; a figure that needs more than was measured is None."""


@dataclass(frozen=True)
class Probe:
    """One diagnosis.

    Attributes:
        name: key in ``diagnosis.json``.
        title: heading on the page.
        measure: a JSON object, or why there is none.
        draw: figures of that object.
        read: how to read them.
        worry: what in them is a problem, and what helps.
        source: paper.
    """

    name: str
    title: str
    measure: Callable[[ProbeInput, Progress], ProbeResult]
    draw: Callable[[Any], Drawn]
    read: str
    worry: str
    source: str


def task_names(tasks: tuple[Task, ...]) -> str:
    """Keys of ``tasks`` in words."""
    return " and ".join(task.key for task in tasks) or "no task"
