"""Which differences of a table are more than chance once all of them are counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unidecouple.eval.benchmark import Metric
from unidecouple.eval.statistics import holm
from unidecouple.figures.estimates import SeedEstimate
from unidecouple.figures.wording import counted, listed
from unidecouple.report.results import Results

LEVEL = 0.05
FEWEST_SEEDS = 3
"""Seeds from which on there is a verdict, or a star: two often differ by the same, and then have an interval of no width."""
NAMED = 5
"""Variants up to which a sentence names them."""
VariantMetric = tuple[str, Metric]
"""(variant, metric)."""


@dataclass(frozen=True)
class CorrectedDifference:
    """A difference to the control and its p after Holm's correction over the table; None with one seed, or without any spread."""

    delta: SeedEstimate
    corrected: float | None

    @property
    def holds(self) -> bool:
        """Whether the difference is significant after the correction, over ``FEWEST_SEEDS`` seeds or more."""
        return self.delta.count >= FEWEST_SEEDS and self.corrected is not None and self.corrected < LEVEL

    @property
    def tests(self) -> str:
        """The tests in words, for a tooltip."""
        if self.delta.count == 1:
            return "one seed: no test"
        words = ["paired t: no spread to judge by"]
        if self.delta.p is not None:
            words = [f"paired t: p = {_p(self.delta.p)}", f"after Holm p = {_p(self.corrected or 0.0)}"]
        words += [f"sign flips: p = {_p(self.delta.flipped)}"] if self.delta.flipped is not None else []
        return f"{', '.join(words)}, {counted(self.delta.count, 'seed')}"


def compared(results: Results, scenario: str, variants: Sequence[str]) -> dict[VariantMetric, CorrectedDifference]:
    """(variant, metric) -> its difference to the control, corrected over all that ``variants`` have in the metrics shown."""
    deltas = {(v, m): results.delta(scenario, v, m) for v in variants for m in results.metrics}
    return corrected({key: delta for key, delta in deltas.items() if delta is not None})


def corrected(deltas: Mapping[VariantMetric, SeedEstimate]) -> dict[VariantMetric, CorrectedDifference]:
    """``deltas`` as one family of tests: the p of each is corrected for all of them."""
    tested = {key: delta.p for key, delta in deltas.items() if delta.p is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {key: CorrectedDifference(delta, adjusted.get(key)) for key, delta in deltas.items()}


def found_sentence(results: Results, scenario: str) -> str:
    """Who is ahead of the control or behind it after the correction; "" with fewer than three variants to compare, or one seed."""
    deltas = compared(results, scenario, results.leading(scenario))
    variants, control = {variant for variant, _ in deltas}, results.reference(scenario)
    tested = sum(one.corrected is not None for one in deltas.values())
    if len(variants) < 3 or control is None or not tested:
        return ""
    clauses = []
    for metric in results.metrics:
        for way, sign in (("ahead", 1), ("behind", -1)):
            held = [(v, one.delta) for (v, m), one in deltas.items() if m == metric and one.holds]
            names = [results.title(v) for v, delta in held if sign * metric.gain(delta.mean) > 0]
            shown = listed(names) if len(names) <= NAMED else f"{len(names)} of {len(variants)} variants"
            clauses += [f"{way} in {metric.title}: {shown}"] if names else []
    lead = f"Against {results.title(control)}, corrected for {counted(tested, 'comparison')} (Holm)"
    return f"{lead}: {'; '.join(clauses)}." if clauses else f"{lead}: no variant is ahead or behind in any score."


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
