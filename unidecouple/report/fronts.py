"""Fronts over learning rates: understanding kept against generation reached. One rate can favour either side, fronts cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unidecouple.batch import TASK_KEYS, Task
from unidecouple.eval.benchmark import Metric
from unidecouple.figures.estimates import SeedEstimate, estimate
from unidecouple.figures.wording import counted, level, listed, signed, spread, unit_words
from unidecouple.report.results import START, Results, rate_name, split_rate

CHOICE = 4
"""Points from which on it is worth telling which are best."""

Point = tuple[float, float]
"""(generation, understanding), shares."""


@dataclass(frozen=True)
class FrontGap:
    """Understanding of ours at point ``rate`` of the learning-rate grid minus that of their front at equal generation, by seed.

    ``gap`` is None where no seed can be compared; ``beyond`` counts the seeds in which their front never comes as far.
    """

    rate: str
    gap: SeedEstimate | None
    beyond: int


def front_axes(results: Results) -> tuple[Metric | None, tuple[Metric, ...]]:
    """(metric along, metrics up) of fronts: the first that is shown of generation, and those of understanding.

    Only metrics of which more is better. Without both tasks there is no front: (None, ()).
    """
    upward = [metric for metric in results.metrics if metric.higher_is_better]
    drawn = next((metric for metric in upward if metric.task == Task.T2I.key), None)
    kept = tuple(metric for metric in upward if metric.task == Task.MMU.key)
    return (drawn, kept) if drawn is not None and kept else (None, ())


def rates(results: Results, scenario: str, name: str) -> tuple[str, ...]:
    """Points of the learning-rate grid that variant ``name`` was trained at."""
    return tuple(rate for base, rate in map(split_rate, results.variants(scenario)) if base == name)


def front_names(results: Results, scenario: str) -> tuple[str, ...]:
    """Variants trained with at least two learning rates."""
    names = dict.fromkeys(split_rate(name)[0] for name in results.variants(scenario))
    return tuple(name for name in names if name != START and len(rates(results, scenario, name)) > 1)


def at_rate(name: str, rate: str) -> str:
    """Name of the variant in ``Results``."""
    return f"{name}@{rate}" if rate else name


def height(front: Sequence[Point], generation: float) -> float | None:
    """Understanding of the front through ``front``'s undominated points at ``generation``; None beyond its end.

    Linear between neighbours and level before the first, which gives the front's owner the benefit of the doubt.
    """
    best = undominated(front)
    if generation > best[-1][0]:
        return None
    return float(np.interp(generation, [p[0] for p in best], [p[1] for p in best]))


def undominated(points: Sequence[Point]) -> list[Point]:
    """Those of ``points`` that no other is as good as in both and better in one, by rising generation; equal ones once."""
    best = {p for p in points if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points)}
    return sorted(best)


def area(points: Sequence[Point]) -> float:
    """Area below and left of the undominated of ``points``, from (0, 0): the hypervolume of a front (Zitzler and Thiele 1999).

    One means that both are perfect. It can only grow with more points, so hold a front against one of as many or more.
    """
    best = undominated(points)
    return sum((x - left) * y for (left, _), (x, y) in zip([(0.0, 0.0), *best], best, strict=False))


def front_areas(results: Results, scenario: str, name: str, metric: Metric) -> dict[int, float]:
    """Seed -> area of the front of variant ``name`` over its rates, of the seeds that were run at all of them."""
    tried = [at_rate(name, rate) for rate in rates(results, scenario, name)]
    drawn = front_axes(results)[0]
    if drawn is None:
        return {}
    far, kept = ([results.final(scenario, variant, m) for variant in tried] for m in (drawn, metric))
    seeds = set.intersection(*(set(found) for found in (*far, *kept))) if tried else set()
    return {seed: area([(x[seed], y[seed]) for x, y in zip(far, kept, strict=True)]) for seed in sorted(seeds)}


def front_gaps(results: Results, scenario: str, ours: str, theirs: str, metric: Metric) -> tuple[FrontGap, ...]:
    """One ``FrontGap`` for each learning rate of ``ours``, against the front of ``theirs`` in ``metric`` over generation's."""
    drawn = front_axes(results)[0]
    if drawn is None:
        return ()

    def reached(name: str) -> dict[str, dict[int, Point]]:
        out: dict[str, dict[int, Point]] = {}
        for rate in rates(results, scenario, name):
            far = results.final(scenario, at_rate(name, rate), drawn)
            kept = results.final(scenario, at_rate(name, rate), metric)
            out[rate] = {seed: (far[seed], kept[seed]) for seed in sorted(far.keys() & kept.keys())}
        return out

    fronts: dict[int, list[Point]] = {}
    for by_seed in reached(theirs).values():
        for seed, point in by_seed.items():
            fronts.setdefault(seed, []).append(point)
    gaps = []
    for rate, by_seed in reached(ours).items():
        paired = [(point, height(fronts[seed], point[0])) for seed, point in by_seed.items() if seed in fronts]
        found = [point[1] - level for point, level in paired if level is not None]
        gaps.append(FrontGap(rate, estimate(found) if found else None, len(paired) - len(found)))
    return tuple(gaps)


def front_sentences(results: Results, scenario: str) -> list[str]:
    """The front of the focus against the control's in each understanding score; nothing where there are no fronts."""
    ours, theirs, (drawn, kept) = results.focus, results.control, front_axes(results)
    if ours is None or theirs is None or drawn is None or not {ours, theirs} <= set(front_names(results, scenario)):
        return []
    our_name, their_name = results.title(ours), results.title(theirs)
    said = []
    for metric in kept:
        gaps = front_gaps(results, scenario, ours, theirs, metric)
        compared = [f"{signed(g.gap.mean, metric.unit)}{spread(g.gap, metric.unit)} at {rate_name(g.rate)}" for g in gaps if g.gap]
        further = [f"{rate_name(g.rate)} ({counted(g.beyond, 'seed')})" for g in gaps if g.beyond]
        if compared:
            lead = f"At equal {drawn.title}, {metric.title} of {our_name} against the front of {their_name} over learning rates"
            said.append(f"{lead}: {listed(compared)} {unit_words(metric.unit)}.")
        if further and metric == kept[0]:
            said.append(f"{our_name} generated better than {their_name} did at any rate at {listed(further)}.")
    return said


def leaders_sentence(results: Results, scenario: str) -> str:
    """What no other is better than in both understanding and generation, single tasks left out; "" with too few to choose from."""
    drawn, kept = front_axes(results)
    asked = [v for v in results.variants(scenario) if results.role(split_rate(v)[0]) not in (START, *TASK_KEYS)]
    found = {v: point for v in asked if kept and (point := mean_point(results, scenario, v, kept[0]))}
    if len(found) < CHOICE or drawn is None:
        return ""
    means = {variant: (far.mean, high.mean) for variant, (far, high) in found.items()}
    best = undominated(list(means.values()))
    leaders = [
        f"{results.title(variant)} ({level(high, kept[0].unit)}, {level(far, drawn.unit)})"
        for variant, (far, high) in means.items()
        if (far, high) in best
    ]
    lead = f"By the means alone, which seeds may not tell from the next best, none of {len(found)} variants and rates"
    return f"{lead} is better in both {kept[0].title} and {drawn.title} than {listed(leaders)}."


def mean_point(results: Results, scenario: str, variant: str, metric: Metric) -> tuple[SeedEstimate, SeedEstimate] | None:
    """(generation, ``metric``) of ``variant`` over its seeds; None if either is missing."""
    drawn = front_axes(results)[0]
    far = results.final(scenario, variant, drawn) if drawn is not None else {}
    kept = results.final(scenario, variant, metric)
    return (estimate(list(far.values())), estimate(list(kept.values()))) if far and kept else None
