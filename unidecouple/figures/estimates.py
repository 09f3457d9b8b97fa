"""A mean over seeds with its interval, and a difference paired by seed with its tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unidecouple.eval.statistics import Interval, mean_interval, paired_difference, paired_t, seeds_to_exclude_zero, sign_flip

Curve = dict[int, float]
"""Step -> value."""
FEWEST_FLIPPED = 5
"""Seeds from which the permutation test is reported beside Student's."""


@dataclass(frozen=True)
class SeedEstimate:
    """Mean over ``count`` seeds and half the width of its 95% interval; None of one seed, which has no interval.

    Of a paired difference, ``p`` is Student's (None where all seeds differ by the same, which leaves no spread to judge by) and
    ``flipped`` the exact sign-flip test's, the latter from five seeds on.
    """

    mean: float
    half_width: float | None
    count: int
    p: float | None = None
    flipped: float | None = None

    @property
    def is_shown(self) -> bool:
        """Whether the interval excludes zero."""
        return self.half_width is not None and abs(self.mean) > self.half_width

    def seeds_to_show(self, most: int) -> int | None:
        """At how many seeds it would be shown if mean and spread stayed; None beyond ``most``, and of one seed."""
        if self.half_width is None:
            return None
        low, high = self.mean - self.half_width, self.mean + self.half_width
        return seeds_to_exclude_zero(Interval(self.mean, low, high, 0.95, self.count), most)


def estimate(values: Sequence[float]) -> SeedEstimate:
    """Mean of ``values``, one per seed (at least one), with Student's t interval where there are two or more."""
    if len(values) == 1:
        return SeedEstimate(values[0], None, 1)
    interval = mean_interval(values)
    return SeedEstimate(interval.mean, interval.half_width, interval.count)


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> SeedEstimate | None:
    """``ours - theirs``, paired over the seeds that both have; None if they share none."""
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) < 2:
        return estimate([ours[seed] - theirs[seed] for seed in seeds]) if seeds else None
    interval = paired_difference({seed: ours[seed] for seed in seeds}, {seed: theirs[seed] for seed in seeds})
    gaps = [ours[seed] - theirs[seed] for seed in seeds]
    flipped = sign_flip(gaps) if len(gaps) >= FEWEST_FLIPPED else None
    return SeedEstimate(interval.mean, interval.half_width, interval.count, paired_t(gaps), flipped)
