"""CAGrad: conflict-averse descent (arXiv 2110.14048, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from unidecouple import bounds
from unidecouple.methods.gradient.aggregation import Momenta, TaskGradients, Tensors, aggregate, make


@dataclass(frozen=True)
class CAGrad:
    """``max_d min_i g_i·d`` subject to ``|d - g_0| <= c |g_0|``, where g_0 is the tasks' mean.

    Ours: times the number of tasks, so that c = 0 is the sum and ``d`` is on one scale with what is summed beside it. TorchJD
    solves it with cvxpy, from the extra ``gradient``.

    Attributes:
        parameters: names of ``PARTS`` or patterns of the weights it works on.
        c: how far from the mean; 0.5 in the paper. From 1 on, d need not follow the mean.
    """

    by_task: ClassVar[bool] = True  # whether each task's own gradient is needed
    kind: Literal["cagrad"] = "cagrad"
    parameters: tuple[str, ...] = ("*",)
    c: float = 0.5

    def __post_init__(self) -> None:
        bounds.at_least(0, self, "c")
        make("CAGrad", c=self.c)  # known before anything is drawn or trained

    def combine(self, gradients: TaskGradients, momenta: Momenta) -> Tensors:
        """Return the direction for the weights that both tasks share; ``gradients`` are overwritten."""
        return aggregate(make("CAGrad", c=self.c), gradients, scale=len(gradients))
