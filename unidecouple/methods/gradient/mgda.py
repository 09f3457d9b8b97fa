"""MGDA: the shortest vector in the hull of the tasks' gradients (arXiv 1810.04650)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from unidecouple.methods.gradient.aggregation import Momenta, TaskGradients, Tensors, aggregate, make


@dataclass(frozen=True)
class MGDA:
    """Two tasks: ``d = gamma g_1 + (1 - gamma) g_2`` with ``gamma = clip((g_2 - g_1)·g_2 / |g_1 - g_2|^2, 0, 1)``.

    Ours: times the number of tasks, so that equal gradients give their sum and ``d`` is on one scale with what is summed beside
    it (other weights, other losses, clipping). The paper's is a mean.

    Attributes:
        parameters: names of ``PARTS`` or patterns of the weights it works on.
    """

    by_task: ClassVar[bool] = True  # whether each task's own gradient is needed
    kind: Literal["mgda"] = "mgda"
    parameters: tuple[str, ...] = ("*",)

    def combine(self, gradients: TaskGradients, momenta: Momenta) -> Tensors:
        """Return the direction for the weights that both tasks share; ``gradients`` are overwritten."""
        return aggregate(make("MGDA"), gradients, scale=len(gradients))
