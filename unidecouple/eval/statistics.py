"""Means over seeds with confidence intervals, paired differences and tests by seed, and the error of a share.

Few seeds are the rule here, so intervals use Student's t and are wide on purpose: a difference whose interval holds zero is no
finding. Two runs of one seed share data order and initial weights, so they are compared in pairs.

``scipy.stats`` is imported where it is used: it takes half a second, which each process of a training run would wait.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

MOST_FLIPPED = 20
"""Differences that ``sign_flip`` takes: a million sums."""

ROUNDING = 1e-12
"""A spread below this share of the largest value is rounding: .1, taken three times, has one of 1.7e-17."""


@dataclass(frozen=True)
class Interval:
    """A mean and its two-sided confidence interval ``[low, high]`` at ``level``, from ``count`` values."""

    mean: float
    low: float
    high: float
    level: float
    count: int

    @property
    def half_width(self) -> float:
        """Distance from the mean to either end."""
        return (self.high - self.low) / 2


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of ``values`` (one per seed) with Student's t interval; of equal values it is theirs, bit for bit.

    Raises:
        ValueError: fewer than two values, or ``level`` outside (0, 1).
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two seeds, got {len(values)}; run more seeds")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie between 0 and 1, for example 0.95")
    from scipy import stats

    mean = float(statistics.mean(values))  # exact; three times .1 has another sum in floats, and then equal methods are not equal
    error = float(stats.sem(values))
    low, high = stats.t.interval(level, len(values) - 1, mean, error) if error else (mean, mean)
    return Interval(mean, float(low), float(high), level, len(values))


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float], level: float = 0.95) -> Interval:
    """Interval of ``ours - theirs``, paired by seed (the key).

    Raises:
        ValueError: the two do not hold the same seeds, or fewer than two.
    """
    if ours.keys() != theirs.keys():
        lone = sorted(ours.keys() ^ theirs.keys())
        raise ValueError(f"seeds {lone} are on one side only; run both sides with the same seeds")
    return mean_interval([ours[seed] - theirs[seed] for seed in sorted(ours)], level)


def seeds_to_exclude_zero(found: Interval, most: int = 100) -> int | None:
    """At how many seeds an interval would exclude zero if mean and spread stayed as ``found`` has them; None beyond ``most``.

    The smallest n with t(n - 1) s / sqrt(n) < abs(mean), where s is the standard deviation that ``found`` was made from.
    """
    from scipy import stats

    half = (1 + found.level) / 2
    deviation = found.half_width * math.sqrt(found.count) / float(stats.t.ppf(half, found.count - 1))
    wanted = range(2, most + 1)
    return next((n for n in wanted if float(stats.t.ppf(half, n - 1)) * deviation / math.sqrt(n) < abs(found.mean)), None)


def paired_t(differences: Sequence[float]) -> float | None:
    """Two-sided p of Student's paired t test that the mean of ``differences`` (one per seed) is zero.

    Differences that are all equal, up to rounding, have no spread to judge by: p is 1 if they are zero, else None.

    Raises:
        ValueError: fewer than two values.
    """
    if len(differences) < 2:
        raise ValueError(f"a test needs at least two seeds, got {len(differences)}; run more seeds")
    mean, spread = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if spread <= ROUNDING * max(map(abs, differences)):
        return None if mean else 1.0
    from scipy import stats

    return float(stats.ttest_1samp(differences, 0.0).pvalue)  # of differences, ttest_rel is this


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p of the exact sign-flip permutation test (Fisher 1935): no assumption but symmetry about zero.

    The share of all 2^n ways to sign the differences whose sum is at least as far from zero. It cannot fall below 2 / 2^n:
    0.0625 with five seeds, 0.031 with six, so five alone never reach 0.05.

    Raises:
        ValueError: no value, or more than 20 (2^n sums are all taken).
    """
    if not 1 <= len(differences) <= MOST_FLIPPED:
        raise ValueError(f"the exact test takes 1 to {MOST_FLIPPED} differences, got {len(differences)}; use paired_t")
    largest = max(map(abs, differences)) or 1.0
    rounded = np.round(np.array(differences) / largest, 9)  # so that sums which are equal are equal in their last bits, too
    from scipy import stats

    found = stats.permutation_test(
        (rounded,), _rounded_sum, permutation_type="samples", vectorized=True, n_resamples=np.inf, batch=1 << 12
    )
    return float(found.pvalue)


def _rounded_sum(values: np.ndarray, axis: int) -> np.ndarray:
    return np.round(np.sum(values, axis=axis), 8)


def holm(values: Sequence[float]) -> list[float]:
    """Adjusted p of each of several tests (Holm 1979), in their order: below a level where the step-down test rejects at it.

    The chance of one false finding or more among all of them stays below the level, whatever ties the tests to one another.
    """
    adjusted, reached = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        reached = max(reached, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = reached
    return adjusted


@dataclass(frozen=True)
class ClusteredProportion:
    """A mean of values in [0, 1], some of which share their luck: questions about one image, images of one prompt.

    Attributes:
        clusters: for each image or prompt, its values.
    """

    clusters: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, values: Iterable[tuple[Hashable, float]]) -> ClusteredProportion:
        """From pairs (what a value shares its luck with, the value)."""
        by: dict[Hashable, list[float]] = {}
        for key, value in values:
            by.setdefault(key, []).append(value)
        return cls(tuple(map(tuple, by.values())))

    @property
    def count(self) -> int:
        """How many values."""
        return sum(map(len, self.clusters))

    @property
    def mean(self) -> float:
        """Their mean."""
        return sum(map(sum, self.clusters)) / self.count

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Wilson's interval (1927) at the effective number of values n / deff, which never leaves [0, 1].

        deff is the variance of the mean by clusters (ratio estimator) over that of independent values, kept between 1 and the
        clusters' mean size; where all values are equal nothing tells, and each cluster counts as one value.
        """
        mean, count, groups = self.mean, self.count, len(self.clusters)
        alone, size = mean * (1 - mean) / count, count / groups
        effect = size
        if groups > 1 and alone > 0:
            spread = sum((sum(cluster) - mean * len(cluster)) ** 2 for cluster in self.clusters)
            effect = min(max(groups / (groups - 1) * spread / count**2 / alone, 1.0), max(size, 1.0))
        return _wilson(mean, count / effect, float(special.ndtri((1 + level) / 2)))


@dataclass(frozen=True)
class RatioOfSums:
    """A mean per unit of values of any size: nats per token of passages of different lengths.

    Attributes:
        pairs: for each passage, its sum and its number of units; at least one.
    """

    pairs: tuple[tuple[float, float], ...]

    @property
    def count(self) -> int:
        """Number of units."""
        return round(sum(units for _, units in self.pairs))

    @property
    def mean(self) -> float:
        """Sum over sum."""
        return math.fsum(total for total, _ in self.pairs) / self.count

    @property
    def shares(self) -> list[float]:
        """One value per passage, whose plain mean is ``mean``."""
        return [total * len(self.pairs) / self.count for total, _ in self.pairs]

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's t interval of the ratio estimator (Cochran 1977, section 6.3) over passages; of one passage its mean, twice."""
        mean, number = self.mean, len(self.pairs)
        if number < 2:
            return mean, mean

        spread = math.fsum((total - mean * units) ** 2 for total, units in self.pairs)
        half = float(special.stdtrit(number - 1, (1 + level) / 2)) * math.sqrt(number / (number - 1) * spread) / self.count
        return mean - half, mean + half


@dataclass(frozen=True)
class MeanOfProportions:
    """The plain mean of independent proportions, such as GenEval's mean of six tags."""

    parts: tuple[ClusteredProportion, ...]

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(part.count for part in self.parts)

    @property
    def mean(self) -> float:
        """Mean of the parts' means."""
        return sum(part.mean for part in self.parts) / len(self.parts)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Interval whose half widths are those of the parts, added in squares."""
        ends = [(part.mean, *part.interval(level)) for part in self.parts]
        down = math.sqrt(sum((mean - low) ** 2 for mean, low, _ in ends)) / len(ends)
        up = math.sqrt(sum((high - mean) ** 2 for mean, _, high in ends)) / len(ends)
        return self.mean - down, self.mean + up


def _wilson(mean: float, count: float, z: float) -> tuple[float, float]:
    weight = z * z / count
    middle = (mean + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(mean * (1 - mean) / count + weight / (4 * count))
    return max(middle - half, 0.0), min(middle + half, 1.0)
