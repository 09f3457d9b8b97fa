"""DOGE (arXiv 2501.01230): task arithmetic whose changes get a common shift, found by adaptive projective gradient descent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unidecouple import bounds
from unidecouple.methods.merging.rule import Rule, mean_change, shared_only
from unidecouple.methods.merging.ties import trim


@dataclass(frozen=True)
class Doge:
    """DOGE: ``theta = theta_0 + sum_k l_k mask_k (tau_k + D)`` per matrix, with ``l_k = scale / ||tau_k||_F``.

    D starts at zero and takes ``steps`` of Adam on ``sum_j || rowsum(tau_j * (tau_j - sum_k l_k (tau_k + D))) ||^2``. Its gradient
    is projected off the first ``floor(s/6)`` left singular directions of the models' top ``floor(s/T)`` left vectors side by side
    (s: the smaller dimension). mask_k keeps the largest entries of ``tau_k``, per matrix (the authors': over all matrices).
    Weights that are no matrices are averaged; the authors keep the base's. A weight that one model alone changed is that model's
    (ours). ``l_k`` makes the changes of all models equally large, so a task that is new to the base loses its size.

    Attributes:
        scale: 0.07 in the authors' code.
        density: share of entries that mask_k keeps.
        steps, learning_rate: of Adam.
    """

    kind: Literal["doge"] = "doge"
    scale: float = 0.07
    density: float = 0.3
    steps: int = 400
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        bounds.finite(self, "scale")
        bounds.between(0, 1, self, "density")
        bounds.at_least(0, self, "steps")
        bounds.above(0, self, "learning_rate")

    def rule(self, scale: float) -> Rule:
        """With ``scale`` in ``l_k``."""

        def merge(name: str, moved: Sequence[Tensor]) -> Tensor:
            return self._matrix(torch.stack(tuple(moved)), scale) if moved[0].ndim == 2 else mean_change(moved)

        return shared_only(merge)

    def _matrix(self, tau: Tensor, scale: float) -> Tensor:
        factors = (scale / torch.linalg.matrix_norm(tau).clamp_min(1e-30)).view(-1, 1, 1)
        shift = self._shift(tau, factors)
        kept = torch.stack([trim(one, self.density) != 0 for one in tau])
        return (factors * kept * (tau + shift)).sum(0)

    def _shift(self, tau: Tensor, factors: Tensor) -> Tensor:
        """D, (out, in)."""
        shift = torch.zeros_like(tau[0]).requires_grad_()
        shared = _shared_directions(tau)
        optimizer = torch.optim.Adam([shift], self.learning_rate)
        for _ in range(self.steps):
            optimizer.zero_grad()
            with torch.enable_grad():
                gap = tau - (factors * (tau + shift)).sum(0)
                loss = (tau * gap).sum(-1).square().sum()
            loss.backward()
            assert shift.grad is not None
            shift.grad -= shared @ (shared.T @ shift.grad)
            optimizer.step()
        return shift.detach()


def _shared_directions(tau: Tensor) -> Tensor:
    """Orthonormal columns (out, floor(s/6)) that the gradient is projected off."""
    smaller = min(tau.shape[1:])
    kept = smaller // len(tau)
    top = torch.cat([torch.linalg.svd(one, full_matrices=False)[0][:, :kept] for one in tau], 1)
    return torch.linalg.svd(top, full_matrices=False)[0][:, : smaller // 6]
