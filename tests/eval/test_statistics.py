"""Intervals and errors against values worked out by hand."""

from __future__ import annotations

import pytest

from unidecouple.eval.statistics import binomial_error, mean_interval, paired_difference


def test_interval_of_three_values() -> None:
    # mean 2, deviation 1, standard error 1 / sqrt(3) = .57735, t(.975, 2) = 4.30265: half width 2.48414
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval.mean == pytest.approx(2.0)
    assert [interval.low, interval.high] == pytest.approx([-0.48414, 4.48414], abs=1e-5)
    assert interval.half_width == pytest.approx(2.48414, abs=1e-5)
    assert interval.count == 3
    assert not interval.excludes_zero


def test_interval_narrows_with_a_lower_level() -> None:
    # t(.95, 2) = 2.91999
    assert mean_interval([1.0, 2.0, 3.0], 0.9).half_width == pytest.approx(2.91999 / 3**0.5, abs=1e-5)


def test_equal_values_give_an_interval_of_no_width() -> None:
    interval = mean_interval([0.5, 0.5])
    assert (interval.low, interval.high) == (0.5, 0.5)
    assert interval.excludes_zero


def test_pairing_by_seed_removes_what_seeds_share() -> None:
    ours, theirs = {2: 0.93, 0: 0.52, 1: 0.71}, {0: 0.50, 1: 0.70, 2: 0.90}
    # differences .02, .01, .03: mean .02, deviation .01, half width .01 / sqrt(3) * 4.30265 = .0248414
    difference = paired_difference(ours, theirs)
    assert difference.mean == pytest.approx(0.02)
    assert difference.half_width == pytest.approx(0.0248414, abs=1e-6)
    assert difference.half_width < mean_interval(list(ours.values())).half_width / 10


def test_unmatched_seeds_are_named() -> None:
    with pytest.raises(ValueError, match=r"seeds \[1, 2\]"):
        paired_difference({0: 1.0, 1: 1.0}, {0: 1.0, 2: 1.0})


def test_one_seed_gives_no_interval() -> None:
    with pytest.raises(ValueError, match="at least two seeds, got 1"):
        mean_interval([0.9])


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_level_must_be_a_share(level: float) -> None:
    with pytest.raises(ValueError, match="level is"):
        mean_interval([0.1, 0.2], level)


def test_binomial_error() -> None:
    assert binomial_error(0.5, 100) == pytest.approx(0.05)
    assert binomial_error(0.9, 900) == pytest.approx(0.01)
    assert binomial_error(1.0, 5) == 0.0


@pytest.mark.parametrize(("share", "count"), [(1.2, 10), (-0.1, 10), (0.5, 0)])
def test_binomial_error_refuses_what_is_no_share(share: float, count: int) -> None:
    with pytest.raises(ValueError, match=r"share is|count is"):
        binomial_error(share, count)
