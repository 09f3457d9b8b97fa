"""Task arithmetic (arXiv 2212.04089): ``theta = theta_0 + lambda sum_k tau_k`` with ``tau_k = theta_k - theta_0``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from unidecouple import bounds

Coefficients = Callable[[str], Sequence[float]]
"""By a weight's name, the coefficient of each tuned model's difference from the base."""


@dataclass(frozen=True)
class TaskArithmetic:
    """One coefficient for all weights and all models.

    Attributes:
        scale: lambda; 0.3 is where AdaMerging (arXiv 2310.02575) starts, 1 / models their mean.
    """

    kind: Literal["task_arithmetic"] = "task_arithmetic"
    scale: float = 0.3

    def __post_init__(self) -> None:
        bounds.finite(self, "scale")  # below 0 is the paper's negation: it unlearns

    def coefficients(self, models: int) -> Coefficients:
        """For ``models`` tuned models."""
        return lambda name: [self.scale] * models


def merged(base: Mapping[str, Tensor], tuned: Sequence[Mapping[str, Tensor]], coefficients: Coefficients) -> dict[str, Tensor]:
    """``theta_0 + sum_k lambda_k tau_k`` of each weight, in float64 and rounded once to the base's type.

    What no model changed stays bit for bit, and so does what is no floating-point number.
    """
    out: dict[str, Tensor] = {}
    for name, start in base.items():
        moved = [(model[name], factor) for model, factor in zip(tuned, coefficients(name), strict=True)]
        if not start.is_floating_point() or all(bool((weight == start).all()) for weight, _ in moved):
            out[name] = start
            continue
        whole = start.double()
        out[name] = (whole + sum(factor * (weight.double() - whole) for weight, factor in moved)).to(start.dtype)
    return out
