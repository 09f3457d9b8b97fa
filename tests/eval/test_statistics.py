"""Intervals and errors against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from unidecouple.eval.statistics import (
    ClusteredProportion,
    MeanOfProportions,
    holm,
    mean_interval,
    paired_difference,
    paired_t,
    seeds_to_exclude_zero,
    sign_flip,
)


def test_interval_of_three_values() -> None:
    # mean 2, deviation 1, standard error 1 / sqrt(3) = .57735, t(.975, 2) = 4.30265: half width 2.48414
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval.mean == pytest.approx(2.0)
    assert [interval.low, interval.high] == pytest.approx([-0.48414, 4.48414], abs=1e-5)
    assert interval.half_width == pytest.approx(2.48414, abs=1e-5)
    assert interval.count == 3


def test_interval_narrows_with_a_lower_level() -> None:
    # t(.95, 2) = 2.91999
    assert mean_interval([1.0, 2.0, 3.0], 0.9).half_width == pytest.approx(2.91999 / 3**0.5, abs=1e-5)


def test_equal_values_give_an_interval_of_no_width() -> None:
    interval = mean_interval([0.5, 0.5])
    assert (interval.low, interval.high) == (0.5, 0.5)


@given(st.floats(0, 1), st.integers(2, 9))
def test_the_mean_of_equal_values_is_theirs(value: float, count: int) -> None:
    assert mean_interval([value] * count).mean == value


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


@pytest.mark.parametrize(
    ("mean", "seeds"),
    [
        (5.0, 3),  # deviation 2: t(.975, 2) 2 / sqrt(3) = 4.97
        (2.0, 7),  # t(.975, 5) 2 / sqrt(6) = 2.10, t(.975, 6) 2 / sqrt(7) = 1.85
        (-2.0, 7),
        (0.4, 99),  # t(.975, 97) 2 / sqrt(98) = .4010, t(.975, 98) 2 / sqrt(99) = .3989
        (0.39, None),
        (0.0, None),
    ],
)
def test_seeds_that_an_interval_takes_to_exclude_zero(mean: float, seeds: int | None) -> None:
    found = mean_interval([mean - 2, mean, mean + 2])
    assert seeds_to_exclude_zero(found) == seeds


class TestPairedT:
    def test_is_scipy_s(self) -> None:
        ours, theirs = [0.61, 0.64, 0.58, 0.70], [0.60, 0.60, 0.59, 0.61]
        differences = [a - b for a, b in zip(ours, theirs, strict=True)]
        assert paired_t(differences) == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)

    def test_by_hand(self) -> None:
        # mean 2, deviation 1, standard error 1 / sqrt(3): t = 3.4641 with 2 degrees: p = 1 - t / sqrt(2 + t^2) = .074180
        assert paired_t([1.0, 2.0, 3.0]) == pytest.approx(1 - (12 / 14) ** 0.5)

    def test_agrees_with_its_interval(self) -> None:
        for shift in (0.0, 0.5, 2.0, 5.0):
            values = [shift + x for x in (-1.0, 0.0, 1.5)]
            p = paired_t(values)
            assert p is not None
            interval = mean_interval(values)
            assert (p < 0.05) == (interval.low > 0 or interval.high < 0)

    def test_equal_differences_have_no_spread(self) -> None:
        assert (paired_t([0.0, 0.0]), paired_t([0.5, 0.5])) == (1.0, None)
        assert np.std([0.1] * 3) > 0
        assert paired_t([0.1] * 3) is None, "a spread of 1.4e-17 is rounding"
        assert paired_t([0.1, 0.1, 0.1 + 1e-9]) is not None
        with pytest.raises(ValueError, match="at least two seeds, got 1"):
            paired_t([0.5])


class TestSignFlip:
    def test_by_hand(self) -> None:
        # sums of (+-1, +-2, +-3): 6, 4, 2, 0, 0, -2, -4, -6; at least 4 from zero: 4 of 8
        assert sign_flip([1.0, 2.0, 3.0]) == pytest.approx(2 / 8)
        assert sign_flip([-1.0, 2.0, 3.0]) == pytest.approx(4 / 8)
        assert sign_flip([0.1, 0.2, -0.3]) == 1.0

    def test_is_scipy_s(self) -> None:
        values = [0.3, -0.1, 0.25, 0.4, 0.05, 0.2]
        theirs = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert sign_flip(values) == pytest.approx(theirs.pvalue)

    def test_five_seeds_alone_never_reach_a_twentieth(self) -> None:
        assert sign_flip([0.5] * 5) == pytest.approx(0.0625)
        assert sign_flip([0.5] * 6) == pytest.approx(0.03125)

    def test_too_many_are_refused(self) -> None:
        with pytest.raises(ValueError, match="got 21"):
            sign_flip([0.1] * 21)


class TestHolm:
    def test_by_hand(self) -> None:
        # sorted .005 x 4, .01 x 3, .03 x 2, .04 x 1; the last may not fall below the one before it
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    def test_one_test_is_left_alone_and_none_exceeds_one(self) -> None:
        assert holm([0.04]) == [0.04]
        assert holm([0.9, 0.8]) == [1.0, 1.0]
        assert holm([]) == []

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
    def test_lies_between_no_correction_and_bonferroni_and_keeps_the_order(self, values: list[float]) -> None:
        adjusted = holm(values)
        assert all(p <= a <= min(1.0, len(values) * p) for p, a in zip(values, adjusted, strict=True))
        assert [a for _, a in sorted(zip(values, adjusted, strict=True))] == sorted(adjusted)


class TestShare:
    def test_independent_values_give_wilson_s_interval(self) -> None:
        share = ClusteredProportion.of(enumerate([1.0] * 8 + [0.0] * 2))
        expected = stats.binomtest(8, 10).proportion_ci(0.95, method="wilson")
        assert (share.count, share.mean) == (10, 0.8)
        assert share.interval() == pytest.approx((expected.low, expected.high))

    def test_values_that_share_all_their_luck_count_once(self) -> None:
        # ten clusters of four equal values: the interval is that of ten values
        share = ClusteredProportion.of((n // 4, float(n // 4 < 8)) for n in range(40))
        expected = stats.binomtest(8, 10).proportion_ci(0.95, method="wilson")
        low, high = share.interval()
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-3)

    def test_clusters_that_do_not_matter_leave_it_alone(self) -> None:
        rng = np.random.default_rng(0)
        values = (rng.random(4000) < 0.7).astype(float)
        loose = ClusteredProportion.of(enumerate(values)).interval()
        clustered = ClusteredProportion.of((n // 4, value) for n, value in enumerate(values)).interval()
        assert clustered == pytest.approx(loose, abs=2e-3)

    def test_it_holds_its_level_where_values_cluster(self) -> None:
        rng, held = np.random.default_rng(1), 0
        for _ in range(300):
            chances = rng.beta(2, 1, 40)
            values = ((n, float(rng.random() < chance)) for n, chance in enumerate(chances) for _ in range(6))
            low, high = ClusteredProportion.of(values).interval()
            held += low <= 2 / 3 <= high
        assert held / 300 == pytest.approx(0.95, abs=0.03)

    def test_all_right_is_no_certainty(self) -> None:
        low, high = ClusteredProportion.of((n // 10, 1.0) for n in range(50)).interval()
        assert high == 1.0
        assert low == pytest.approx(stats.binomtest(5, 5).proportion_ci(0.95, method="wilson").low)

    def test_a_mean_of_two_equal_shares_is_narrower_by_the_root_of_two(self) -> None:
        share = ClusteredProportion.of(enumerate([1.0, 0.0] * 50))
        low, high = share.interval()
        both = MeanOfProportions((share, share)).interval()
        assert (both[1] - both[0]) == pytest.approx((high - low) / 2**0.5)
