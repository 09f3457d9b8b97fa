"""Whether a task became worse: paired differences per sample, corrected for all that is tested at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from unidecouple.eval.benchmark import BenchmarkResult, Metric
from unidecouple.eval.statistics import ClusteredProportion, MeanOfProportions, RatioOfSums, holm, mean_interval, paired_t

LEVEL: Final = 0.05
WORSE, BETTER, UNCHANGED = "worse", "better", "no significant change"


@dataclass(frozen=True)
class MeasureChange:
    """One measure of a task before and after.

    Attributes:
        task: key of the task.
        name: of the measure.
        unit: of its values: "nats" per token or "share".
        before, after: its values.
        gains: one per sample or cluster, signed so that more than zero is better; their mean is the gain.
    """

    task: str
    name: str
    unit: str
    before: float
    after: float
    gains: Sequence[float]


@dataclass(frozen=True)
class Tested:
    """A measure with its tests.

    Attributes:
        measured: what was tested.
        low, high: 95% interval of the gain.
        worse: p that the gain is at least ``-tolerance``, one-sided, after Holm.
        better: p that the gain is at most 0, one-sided, after Holm.
    """

    measured: MeasureChange
    low: float
    high: float
    worse: float
    better: float

    @property
    def verdict(self) -> str:
        """``WORSE``, ``BETTER`` or ``UNCHANGED``."""
        return WORSE if self.worse < LEVEL else BETTER if self.better < LEVEL else UNCHANGED

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON object."""
        one = self.measured
        return {
            "task": one.task,
            "name": one.name,
            "unit": one.unit,
            "before": one.before,
            "after": one.after,
            "gain": sum(one.gains) / len(one.gains),
            "low": self.low,
            "high": self.high,
            "samples": len(one.gains),
            "p_worse": self.worse,
            "p_better": self.better,
            "verdict": self.verdict,
        }


def of_losses(task: str, before: Sequence[float], after: Sequence[float]) -> MeasureChange:
    """The held-out loss of the task with key ``task``, paired by sample."""
    gains = [old - new for old, new in zip(before, after, strict=True)]
    return MeasureChange(task, "held-out loss", "nats", sum(before) / len(before), sum(after) / len(after), gains)


def of_scores(metric: Metric, before: BenchmarkResult, after: BenchmarkResult) -> MeasureChange | None:
    """A benchmark's headline score, paired by image or prompt; None where it is no proportion.

    Raises:
        ValueError: the two are not of the same images or prompts.
    """
    pair = [result.proportions.get(metric.metric) for result in (before, after)]
    if pair[0] is None or pair[1] is None:
        return None
    gains = [metric.gain(new - old) for old, new in zip(*map(_shares, pair), strict=True)]
    return MeasureChange(metric.task, metric.title, metric.unit, pair[0].mean, pair[1].mean, gains)


def run_tests(measures: Sequence[MeasureChange], tolerance: float) -> list[Tested]:
    """Test every measure for a loss beyond ``tolerance`` and for a gain; each family of tests is corrected by Holm."""
    worse = holm([_p_below([gain + tolerance for gain in one.gains]) for one in measures])
    better = holm([_p_below([-gain for gain in one.gains]) for one in measures])
    found = []
    for one, bad, good in zip(measures, worse, better, strict=True):
        interval = mean_interval(one.gains)
        found.append(Tested(one, interval.low, interval.high, bad, good))
    return found


def worse_tasks(tested: Sequence[Tested]) -> list[str]:
    """Keys of the tasks of which a measure is significantly worse."""
    return list(dict.fromkeys(one.measured.task for one in tested if one.verdict == WORSE))


def _p_below(values: Sequence[float]) -> float:
    """One-sided p of Student's t test that the mean is zero or more: small where it is below.

    Values that are all equal and not zero have no spread: their sign alone decides.
    """
    p, centre = paired_t(values), sum(values)
    if p is None:
        return 0.0 if centre < 0 else 1.0
    return p / 2 if centre < 0 else 1 - p / 2


def _shares(proportion: ClusteredProportion | MeanOfProportions | RatioOfSums | None) -> list[float]:
    """A value per cluster, such that their plain mean is the proportion."""
    assert proportion is not None
    if isinstance(proportion, RatioOfSums):
        return proportion.shares
    kinds = proportion.parts if isinstance(proportion, MeanOfProportions) else (proportion,)
    every = sum(len(kind.clusters) for kind in kinds)
    return [sum(cluster) * every / (kind.count * len(kinds)) for kind in kinds for cluster in kind.clusters]
