"""TSV-M (arXiv 2412.00081): each model's top singular vectors, made orthogonal to the other models'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unidecouple import bounds
from unidecouple.methods.merging.rule import Rule, mean_change, shared_only


@dataclass(frozen=True)
class TSVM:
    """Task singular vectors: ``theta = theta_0 + alpha U' S V'``, of the T models' top ``floor(s/T)`` singular triples.

    s is the smaller dimension; U' and V' are the orthonormal matrices nearest to the models' vectors side by side (orthogonal
    Procrustes). Weights that are no matrices are averaged, as in the authors' code. A weight that one model alone changed is that
    model's (ours).

    Attributes:
        scale: alpha; 1 in the paper. null chooses it on held-out data.
    """

    kind: Literal["tsv_m"] = "tsv_m"
    scale: float | None = 1.0

    def __post_init__(self) -> None:
        if self.scale is not None:
            bounds.finite(self, "scale")

    def rule(self, scale: float) -> Rule:
        """With alpha ``scale``."""
        return shared_only(lambda name, moved: scale * _orthogonal_sum(moved) if moved[0].ndim == 2 else mean_change(moved))


def nearest_orthonormal(matrix: Tensor) -> Tensor:
    """``U V^T`` of the SVD of ``matrix``: the orthogonal Procrustes solution."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


def _orthogonal_sum(moved: Sequence[Tensor]) -> Tensor:
    kept = min(moved[0].shape) // len(moved)
    if not kept:
        return mean_change(moved)
    parts = [torch.linalg.svd(tau, full_matrices=False) for tau in moved]
    left = torch.cat([u[:, :kept] for u, _, _ in parts], 1)
    right = torch.cat([v[:kept] for _, _, v in parts])
    values = torch.cat([s[:kept] for _, s, _ in parts])
    return nearest_orthonormal(left) * values @ nearest_orthonormal(right)
