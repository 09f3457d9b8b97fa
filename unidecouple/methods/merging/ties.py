"""TIES-Merging (arXiv 2306.01708, section 3): trim small changes, elect a sign for each weight, average the changes that agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unidecouple import bounds
from unidecouple.methods.merging.rule import Rule, shared_only


@dataclass(frozen=True)
class Ties:
    """TIES: ``theta = theta_0 + lambda tau``, tau the mean of the trimmed changes with the elected sign.

    Trimming is per weight tensor, as in mergekit; the paper trims a model's whole change at once. A weight that one model alone
    changed is that model's (ours).

    Attributes:
        density: share of a tensor's entries, the largest, that is kept; 0.2 in the paper.
        scale: lambda; 1 in the paper where there is no validation data. null chooses it on held-out data.
    """

    kind: Literal["ties"] = "ties"
    density: float = 0.2
    scale: float | None = 1.0

    def __post_init__(self) -> None:
        bounds.between(0, 1, self, "density")
        if self.scale is not None:
            bounds.finite(self, "scale")

    def rule(self, scale: float) -> Rule:
        """With lambda ``scale``."""
        return shared_only(lambda name, moved: scale * self._agreed(moved))

    def _agreed(self, moved: Sequence[Tensor]) -> Tensor:
        trimmed = torch.stack([trim(tau, self.density) for tau in moved])
        elected = torch.where(trimmed.sum(0) >= 0, 1.0, -1.0)
        agree = trimmed.sign() == elected
        return (trimmed * agree).sum(0) / agree.sum(0).clamp_min(1)


def trim(tau: Tensor, density: float) -> Tensor:
    """``tau`` with its ``density`` largest entries (at least one), all others zero."""
    kept = max(1, int(density * tau.numel()))
    flat = torch.zeros_like(tau).flatten()
    largest = tau.abs().flatten().topk(kept).indices
    flat[largest] = tau.flatten()[largest]
    return flat.view_as(tau)
