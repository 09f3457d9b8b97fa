"""Singular values and low-rank approximations of a matrix: exact when it is small, else randomised with a fixed seed.

Randomised SVD with subspace iteration: Halko, Martinsson and Tropp 2011 (arXiv 0909.4061), algorithms 4.4 and 5.1.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EXACT = 512
"""Matrices whose smaller side is at most this get an exact SVD."""
_OVERSAMPLING, _ITERATIONS = 16, 3


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a matrix.

    Attributes:
        values: (k,) float64, descending; all of them, or the largest of a randomised SVD.
        total: sum of squares of all singular values (the squared norm).
        complete: whether ``values`` are all.
    """

    values: Tensor
    total: float
    complete: bool

    def rank_at(self, share: float) -> int | None:
        """Fewest singular values with ``share`` of the energy (sum of squares); None if ``values`` do not reach it, 0 of a zero."""
        if not self.total:
            return 0
        reached = self.values.square().cumsum(0) >= share * self.total * (1 - 1e-9)
        hits = reached.nonzero()
        if len(hits):
            return int(hits[0]) + 1
        return len(self.values) if self.complete else None

    def energy_at(self, rank: int) -> float:
        """Share of the energy in the ``rank`` largest values; 1 of a zero matrix."""
        return float(self.values[:rank].square().sum() / self.total) if self.total else 1.0


def spectrum(name: str, matrix: Tensor, largest: int) -> Spectrum:
    """Singular values of ``matrix`` (m, n); the ``largest`` alone where both sides exceed ``EXACT``. ``name`` seeds the sketch."""
    total = float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2
    if not total or _is_exact(matrix, largest):
        return Spectrum(torch.linalg.svdvals(matrix.double()), total, complete=True)
    values = _sketched(name, matrix, largest)[1]
    return Spectrum(values.double(), total, complete=False)


def truncated(name: str, matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Best ``up`` (m, rank) and ``down`` (rank, n) float32 with ``matrix ~ up @ down``; the singular values are split evenly."""
    if _is_exact(matrix, rank):
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    else:
        left, values, right = _sketched(name, matrix, rank)
    root = values[:rank].sqrt()
    return (left[:, :rank] * root).float().contiguous(), (root.unsqueeze(1) * right[:rank]).float().contiguous()


def as_matrices(weight: Tensor) -> Sequence[Tensor]:
    """The matrices of a weight: itself, each of a stack (E, m, n), a convolution as (out, rest); none of a vector."""
    if weight.ndim < 2:
        return ()
    return list(weight) if weight.ndim == 3 else [weight.flatten(1)]


def _is_exact(matrix: Tensor, rank: int) -> bool:
    return min(matrix.shape) <= max(EXACT, rank + _OVERSAMPLING)


def _sketched(name: str, matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    wide = matrix.float()
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    start = torch.randn(wide.shape[1], rank + _OVERSAMPLING, generator=generator).to(wide.device)
    basis = torch.linalg.qr(wide @ start).Q
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(wide @ torch.linalg.qr(wide.T @ basis).Q).Q
    inner, values, right = torch.linalg.svd(basis.T @ wide, full_matrices=False)
    return (basis @ inner)[:, :rank], values[:rank], right[:rank]
