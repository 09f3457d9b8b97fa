"""MAOP: Momentum-Anchored Orthogonal Projection of Rosetta (arXiv 2607.00293)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from unidecouple import bounds
from unidecouple.methods.gradient.aggregation import Momenta, TaskGradients, Tensors
from unidecouple.methods.gradient.sum import Sum


@dataclass(frozen=True)
class MAOP:
    """Where a gradient g points against Adam's first moment m, that part is taken out: ``g -= (g·m / (|m|^2 + eps)) m``.

    The moment stands for what the weights have learned so far. Before a weight's first step nothing is projected.

    Which g is meant: the paper promises no memory beyond the optimizer's, and that leaves the gradient as the optimizer gets it,
    the total over tasks ("total"; no second backward pass). Its abstract speaks of the new modality's gradient; "t2i" projects
    generation's alone and adds understanding's untouched (ours: two backward passes). One inner product a weight tensor, before
    clipping: unpublished, ours.

    Attributes:
        parameters: names of ``PARTS`` or patterns of the weights it works on; the paper's are the shared expert's.
        of: the gradient that is projected.
        eps: against division by zero; unpublished.
    """

    kind: Literal["maop"] = "maop"
    parameters: tuple[str, ...] = ("*.mlp.shared_expert.*",)
    of: Literal["total", "t2i"] = "total"
    eps: float = 1e-12

    def __post_init__(self) -> None:
        bounds.at_least(0, self, "eps")

    @property
    def by_task(self) -> bool:
        """Whether each task's own gradient is needed."""
        return self.of != "total"

    def combine(self, gradients: TaskGradients, momenta: Momenta) -> Tensors:
        """Return the direction for the weights that ``parameters`` names; ``gradients`` are overwritten."""
        for g, m in zip(gradients.get(self.of, []), momenta, strict=False):
            if m is not None:
                self._project(g, m)
        return Sum().combine(gradients, momenta)

    def _project(self, g: Tensor, m: Tensor) -> None:
        along = _whole((g * m).sum())
        if along < 0:
            g.sub_(m * (along / (_whole((m * m).sum()) + self.eps)))


def _whole(product: Tensor) -> float:
    """Return an inner product of sharded tensors, over all processes."""
    from torch.distributed.tensor import DTensor  # imports sympy, a second

    return float(product.full_tensor() if isinstance(product, DTensor) else product)
