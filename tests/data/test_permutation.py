"""The shuffle is a bijection for every size and key, mixes well, and never changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unidecouple.data.permutation import permute

keys = st.lists(st.integers(0, 2**64), min_size=1, max_size=4)


@given(size=st.integers(1, 700), key=keys)
def test_a_bijection(size: int, key: list[int]) -> None:
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


@given(size=st.integers(1, 2**62), key=keys, share=st.floats(0, 1, exclude_max=True))
def test_any_size_one_at_a_time(size: int, key: list[int], share: float) -> None:
    index = min(int(size * share), size - 1)
    alone = permute(index, size, key)
    assert alone.shape == ()
    assert 0 <= int(alone) < size
    assert int(permute(np.array([0, index]), size, key)[1]) == int(alone)


def test_keys_differ_and_places_are_mixed() -> None:
    size = 10_000
    orders = np.stack([permute(np.arange(size), size, (0, epoch)) for epoch in range(4)])
    assert np.abs(np.corrcoef(np.vstack([orders, np.arange(size)])) - np.eye(5)).max() < 0.05
    neighbours = np.abs(np.diff(orders[0]))
    assert abs(neighbours.mean() / (size / 3) - 1) < 0.03  # of two random places, a third of the size apart


def test_the_order_is_what_it_always_was() -> None:
    """Runs that resume after an update must go on in the same order."""
    assert permute(np.arange(10), 10, (7, 1)).tolist() == [8, 0, 5, 3, 7, 4, 6, 2, 9, 1]


def test_outside() -> None:
    with pytest.raises(ValueError, match="indices 0 to 3 do not lie in 0 to 2"):
        permute(np.array([0, 3]), 3, (0,))
