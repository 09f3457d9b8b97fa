"""Ranks and approximations against numpy's SVD and against spectra that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unidecouple.delta.spectrum import EXACT, as_matrices, spectrum, truncated


def with_values(values: list[float], rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(rows, len(values), generator=generator)).Q
    right = torch.linalg.qr(torch.randn(columns, len(values), generator=generator)).Q
    return left @ torch.diag(torch.tensor(values, dtype=torch.float32)) @ right.T


def test_ranks_by_hand() -> None:
    """Squares 9, 4, 4, 1 of 18: 50% is the first alone, 90% takes three (17/18), 99% all."""
    found = spectrum("w", with_values([3, 2, 2, 1], 12, 8), 4)
    assert [found.rank_at(share) for share in (0.5, 0.9, 0.99)] == [1, 3, 4]
    assert [found.energy_at(rank) for rank in (0, 1, 2, 4)] == pytest.approx([0, 9 / 18, 13 / 18, 1], abs=1e-6)
    zero = spectrum("w", torch.zeros(4, 4), 4)
    assert (zero.rank_at(0.9), zero.energy_at(1)) == (0, 1.0)


def test_a_large_matrix_is_sketched_the_same_way_each_time() -> None:
    side = EXACT + 40
    matrix = with_values([float(value) for value in range(20, 0, -1)], side, side + 7) + 1e-4 * torch.randn(side, side + 7)
    found, again = spectrum("w", matrix, 30), spectrum("w", matrix, 30)
    assert not found.complete
    assert torch.equal(found.values, again.values)
    np.testing.assert_allclose(found.values[:20], range(20, 0, -1), rtol=1e-3)
    assert found.rank_at(0.5) == 5  # of 2870: 20^2 + ... + 16^2 = 1630, and without 16^2 1374
    assert found.rank_at(0.9999999999) is None


@pytest.mark.parametrize(("side", "rank"), [(40, 5), (EXACT + 30, 12)])
def test_the_best_approximation(side: int, rank: int) -> None:
    matrix = with_values([2.0**-k for k in range(14)], side, side - 3)
    up, down = truncated("w", matrix, rank)
    left, values, right = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    np.testing.assert_allclose((up @ down).numpy(), (left[:, :rank] * values[:rank]) @ right[:rank], atol=1e-5)
    assert (up.shape, down.shape) == ((side, rank), (rank, side - 3))


def test_stacks_and_convolutions() -> None:
    assert [tuple(one.shape) for one in as_matrices(torch.zeros(3, 4, 5))] == [(4, 5)] * 3
    assert [tuple(one.shape) for one in as_matrices(torch.zeros(3, 4, 5, 5))] == [(3, 100)]
    assert not as_matrices(torch.zeros(3))
