"""The plain sum of the tasks' losses: one backward pass, nothing changed. The baseline of every gradient method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from unidecouple.methods.gradient.aggregation import Momenta, TaskGradients, Tensors


@dataclass(frozen=True)
class Sum:
    """``d = sum_t g_t``."""

    by_task: ClassVar[bool] = False  # whether each task's own gradient is needed
    kind: Literal["sum"] = "sum"

    @property
    def parameters(self) -> tuple[str, ...]:
        """No weight's gradient is touched."""
        return ()

    def combine(self, gradients: TaskGradients, momenta: Momenta) -> Tensors:
        """Return the gradients' sum, written over the first."""
        first, *others = gradients.values()
        for row in others:
            for g, other in zip(first, row, strict=True):
                g.add_(other)
        return first
