"""Task arithmetic (arXiv 2212.04089): ``theta = theta_0 + lambda sum_k tau_k`` with ``tau_k = theta_k - theta_0``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unidecouple import bounds
from unidecouple.methods.merging.rule import Rule


@dataclass(frozen=True)
class TaskArithmetic:
    """One coefficient for all weights and all models.

    Attributes:
        scale: lambda; 0.3 is where AdaMerging (arXiv 2310.02575) starts, 1 / models their mean. null chooses it on held-out data.
    """

    kind: Literal["task_arithmetic"] = "task_arithmetic"
    scale: float | None = 0.3

    def __post_init__(self) -> None:
        if self.scale is not None:
            bounds.finite(self, "scale")  # below 0 is the paper's negation: it unlearns

    def rule(self, scale: float) -> Rule:
        """With lambda ``scale``."""
        return lambda name, moved: sum((scale * tau for tau in moved[1:]), scale * moved[0])
