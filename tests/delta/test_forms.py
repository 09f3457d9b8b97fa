"""Ranks by hand: energies, budgets, and forms that would be as large as the matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unidecouple.delta.forms import ChangedMatrix, Fidelity, choose_forms
from unidecouple.delta.spectrum import Spectrum


def matrix(values: list[float], shape: tuple[int, int] = (10, 10), itemsize: int = 1) -> ChangedMatrix:
    found = torch.tensor(values, dtype=torch.float64)
    return ChangedMatrix(shape, itemsize, Spectrum(found, float(found.square().sum()), complete=True))


@pytest.mark.parametrize(
    ("fidelity", "wanted"),
    [
        (Fidelity(rank=2), {"a": "rank:2", "b": "rank:2"}),
        (Fidelity(rank=5), {"a": "full", "b": "full"}),  # 5 * 20 numbers are as many as 10 * 10
        (Fidelity(full=True), {"a": "full", "b": "full"}),
        (Fidelity(bits=True), {"a": "bits", "b": "bits"}),
        (Fidelity(bits=True, budget=42), {"a": "bits", "b": "bits"}),  # 10 rows of 2 bytes, and a scale
        (Fidelity(bits=True, budget=41), {"a": "sparse:4", "b": "sparse:4"}),  # 4 * 4 + 1 + 1 each; 5 entries need 22
        (Fidelity(bits=True, budget=12), {"a": "sparse:1", "b": "sparse:1"}),
        (Fidelity(energy=0.6), {"a": "rank:1", "b": "rank:2"}),  # 16 of 22; 9 of 22, 18 of 22
        (Fidelity(energy=1.0), {"a": "rank:3", "b": "rank:3"}),
        (Fidelity(budget=40), {"a": "rank:1", "b": "rank:1"}),  # 16, then 9
        (Fidelity(budget=65), {"a": "rank:1", "b": "rank:2"}),  # then 9, with 5 bytes left
        (Fidelity(budget=20), {"a": "rank:1"}),
        (Fidelity(budget=1000, energy=0.6), {"a": "rank:1", "b": "rank:2"}),
        (Fidelity(budget=1000), {"a": "rank:3", "b": "rank:3"}),
    ],
)
def test_forms(fidelity: Fidelity, wanted: dict[str, str]) -> None:
    assert choose_forms({"a": matrix([4, 2, 2**0.5]), "b": matrix([3, 3, 2])}, fidelity) == wanted


def test_a_budget_counts_whole_matrices() -> None:
    """Rank 5 of 10 x 10 costs 100: the last step is the rest of the matrix, and the form is exact."""
    assert choose_forms({"a": matrix([1.0] * 10)}, Fidelity(budget=100)) == {"a": "full"}
    assert choose_forms({"a": matrix([1.0] * 10)}, Fidelity(budget=99)) == {"a": "rank:4"}


def test_choices_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"a budget of 3 bytes holds no rank of any matrix \(at least 20\)"):
        choose_forms({"a": matrix([1])}, Fidelity(budget=3))
    with pytest.raises(ValueError, match=r"a budget of 5 bytes holds no sign of any matrix \(at least 6\)"):
        choose_forms({"a": matrix([1])}, Fidelity(bits=True, budget=5))
    assert choose_forms({"a": matrix([1]), "b": matrix([1], (2, 3), 4)}, Fidelity(bits=True, budget=20)) == {"a": "sparse:4"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rank": 2, "full": True}, "choose one"),
        ({}, "choose one"),
        ({"budget": 5, "rank": 2}, "a size budget chooses ranks itself"),
        ({"rank": 2, "bits": True}, "choose one"),
        ({"budget": 0}, "budget"),
        ({"rank": 0}, "rank"),
        ({"energy": 1.5}, "energy"),
        ({"energy": 0}, "energy=0 must be above 0 and at most 1"),
    ],
)
def test_fidelities_that_contradict(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Fidelity(**given)
