"""Means over seeds with confidence intervals, paired differences by seed, and the error of a share.

Few seeds are the rule here, so intervals use Student's t and are wide on purpose: a difference whose interval holds zero is no
finding. Two runs of one seed share data order and initial weights, so they are compared in pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


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

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of ``values`` (one a seed) with Student's t interval.

    Raises:
        ValueError: fewer than two values, or ``level`` outside (0, 1).
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two seeds, got {len(values)}; run more seeds")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie between 0 and 1, for example 0.95")
    mean = float(np.mean(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = error * float(stats.t.ppf((1 + level) / 2, len(values) - 1))
    return Interval(mean, mean - half, mean + half, level, len(values))


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float], level: float = 0.95) -> Interval:
    """Interval of ``ours - theirs``, paired by seed (the key).

    Raises:
        ValueError: the two do not hold the same seeds, or fewer than two.
    """
    if ours.keys() != theirs.keys():
        lone = sorted(ours.keys() ^ theirs.keys())
        raise ValueError(f"seeds {lone} are on one side only; run both sides with the same seeds")
    return mean_interval([ours[seed] - theirs[seed] for seed in sorted(ours)], level)


def binomial_error(share: float, count: int) -> float:
    """Standard error of a share of ``count`` independent yes-or-no outcomes: sqrt(p (1 - p) / n).

    Raises:
        ValueError: ``share`` outside [0, 1] or ``count`` below 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it must lie between 0 and 1")
    if count < 1:
        raise ValueError(f"count is {count}; a share needs at least one outcome")
    return math.sqrt(share * (1 - share) / count)
