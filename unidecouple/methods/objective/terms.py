"""What an auxiliary loss gets of a training step, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from unidecouple.batch import JointBatch, Task

if TYPE_CHECKING:
    from unidecouple.models.base import JointOutput

SumOverProcesses = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class StepTotals:
    """Denominators of a step's means, counted over all its micro-batches and processes; (tasks,) each.

    Attributes:
        targets: positions with a cross-entropy, per task.
        tokens: tokens that are not padding, per task.
        samples: samples whose attention between the modalities is measured, per task; zeros where none is.
    """

    targets: Tensor
    tokens: Tensor
    samples: Tensor


@dataclass(frozen=True)
class Microbatch:
    """One forward pass of a step, as a loss sees it.

    Attributes:
        batch: what the model was given.
        output: what it computed.
        tasks: tasks that the run has data of.
        totals: of the whole step, so that the losses of its micro-batches sum to the step's.
        sum_over_processes: sums a tensor over the processes that share the step.
    """

    batch: JointBatch
    output: JointOutput
    tasks: Sequence[Task]
    totals: StepTotals
    sum_over_processes: SumOverProcesses = lambda value: value


class Term(NamedTuple):
    """One summand of the loss: unweighted value (a scalar in the graph), coefficient, and the task it belongs to, if any."""

    value: Tensor
    coeff: float
    task: Task | None = None


@dataclass(frozen=True)
class Losses:
    """The weighted losses that one micro-batch adds to its step, in the graph.

    Attributes:
        tasks: per task, by its key.
        others: those that belong to no task (group router, load balance).
        terms: every loss by its name, unweighted, for the log.
    """

    tasks: dict[str, Tensor]
    others: list[Tensor]
    terms: dict[str, Tensor]

    @property
    def total(self) -> Tensor:
        """Their sum (arXiv 2506.03591, eq. 2), in the order they are given."""
        loss = torch.stack([*self.tasks.values()]).sum()
        for other in self.others:
            loss = loss + other
        return loss
