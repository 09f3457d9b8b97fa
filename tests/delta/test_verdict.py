"""Paired tests against scipy, and scores whose differences average to the difference of the scores."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from unidecouple.batch import Task
from unidecouple.delta.verdict import BETTER, UNCHANGED, WORSE, MeasureChange, of_losses, of_scores, run_tests, worse_tasks
from unidecouple.eval.benchmark import BenchmarkResult, Metric
from unidecouple.eval.statistics import ClusteredProportion, MeanOfProportions


def test_one_sided_paired_t_after_holm() -> None:
    """Two measures: Holm doubles the smaller p."""
    rng = np.random.default_rng(0)
    before = rng.normal(2, 0.3, 20)
    worse, same = before + rng.normal(0.2, 0.1, 20), before + rng.normal(0, 0.1, 20)
    mmu, t2i = run_tests([of_losses(Task.MMU.key, before, worse), of_losses(Task.T2I.key, before, same)], 0.0)
    wanted = stats.ttest_rel(worse, before, alternative="greater").pvalue
    assert mmu.worse == pytest.approx(2 * wanted)
    assert mmu.verdict == WORSE
    assert (t2i.verdict, t2i.worse) == (UNCHANGED, pytest.approx(stats.ttest_rel(same, before, alternative="greater").pvalue))
    assert (mmu.low + mmu.high) / 2 == pytest.approx(before.mean() - worse.mean())
    assert worse_tasks([mmu, t2i]) == ["mmu"]
    (swapped,) = run_tests([of_losses(Task.MMU.key, worse, before)], 0.0)
    assert (swapped.verdict, swapped.better) == (BETTER, pytest.approx(wanted))


@pytest.mark.parametrize(("tolerance", "verdict"), [(0.0, WORSE), (0.19, WORSE), (0.21, UNCHANGED)])
def test_the_tolerance_is_what_must_be_exceeded(tolerance: float, verdict: str) -> None:
    gains = [-0.2 + 0.001 * (-1) ** k for k in range(10)]
    assert run_tests([MeasureChange("mmu", "x", "nats", 1, 1.2, gains)], tolerance)[0].verdict == verdict


def test_equal_differences_have_no_spread() -> None:
    assert run_tests([MeasureChange("mmu", "x", "nats", 1, 1, [0.0] * 5)], 0.0)[0].verdict == UNCHANGED
    assert run_tests([MeasureChange("mmu", "x", "nats", 1, 2, [-1.0] * 5)], 0.0)[0].verdict == WORSE
    assert run_tests([MeasureChange("mmu", "x", "nats", 2, 1, [1.0] * 5)], 0.0)[0].verdict == BETTER


@pytest.mark.parametrize("means", [False, True])
def test_scores_are_paired_by_cluster(means: bool) -> None:
    """Clusters and tags of unequal size: the gains' plain mean is still the difference of the scores."""

    def result(*answers: tuple[float, ...]) -> BenchmarkResult:
        one = ClusteredProportion(answers[:2])
        return BenchmarkResult(
            (), {"s": MeanOfProportions((one, ClusteredProportion(answers[2:]))) if means else ClusteredProportion(answers)}
        )

    before, after = result((1, 1, 0), (1,), (0, 1)), result((1, 0, 0), (1,), (1, 1))
    found = of_scores(Metric("b", "s", "B", "mmu"), before, after)
    assert found is not None
    assert sum(found.gains) / len(found.gains) == pytest.approx(found.after - found.before)
    assert found.before == pytest.approx((3 / 4 + 1 / 2) / 2 if means else 4 / 6)
    assert len(found.gains) == 3
    assert of_scores(Metric("b", "other", "B", "mmu"), before, after) is None
