"""PCGrad: gradient surgery (arXiv 2001.06782, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from unidecouple.methods.gradient.aggregation import Momenta, TaskGradients, Tensors, aggregate, make


@dataclass(frozen=True)
class PCGrad:
    """Each task's gradient without its part against another's, ``g_i -= (g_i·g_j / |g_j|^2) g_j`` where g_i·g_j < 0; then the sum.

    One inner product over all weights together, as in the paper. Without conflict it is the sum. With two tasks the paper's
    random order decides nothing.

    Attributes:
        parameters: names of ``PARTS`` or patterns of the weights it works on.
    """

    by_task: ClassVar[bool] = True  # whether each task's own gradient is needed
    kind: Literal["pcgrad"] = "pcgrad"
    parameters: tuple[str, ...] = ("*",)

    def combine(self, gradients: TaskGradients, momenta: Momenta) -> Tensors:
        """Return the direction for the weights that both tasks share; ``gradients`` are overwritten."""
        return aggregate(make("PCGrad"), gradients)
