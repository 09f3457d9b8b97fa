"""The figure of fronts: understanding against generation over learning rates, a group of variants at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from unidecouple.report.figures import WIDTH
from unidecouple.report.fronts import at_rate, mean_point, rates, undominated
from unidecouple.report.results import GENEVAL, MAIN, START, Estimate, Measure, Results, rate_name
from unidecouple.report.style import GRID, INK, MUTED, PAPER, Look, Plot, canvas, legend, name_panel, to_svg
from unidecouple.report.wording import listed, points

NAMED = 2
"""Fronts up to which each point says its learning rates; with more there is no room."""
FAR = 5.0
"""What lies further below the best than so many times the median is an arrow at the edge, with its two scores."""
MARGIN = 0.07
"""Of a panel's width and height, around its points."""


def front(results: Results, scenario: str, names: Sequence[str], look: Mapping[str, Look], ids: str) -> Plot | None:
    """Fronts of the variants ``names``, before the points of all others and the common front; ``ids`` names the figure."""
    measures = [measure for measure in MAIN if measure != GENEVAL]
    figure, axes = canvas(WIDTH, 4.4, 1, len(measures))
    drawn = [_panel(axis, results, scenario, names, measure, look) for axis, measure in zip(axes, measures, strict=True)]
    if not any(drawn):
        return None
    legend(figure, axes, columns=4)
    alt = f"Fronts in {scenario}: understanding scores over GenEval for {listed([results.title(name) for name in names])}."
    return Plot(
        to_svg(figure, ids),
        alt,
        _caption(_has_room(results, scenario, names), [name for name in results.names if name not in (START, *names)]),
    )


def _has_room(results: Results, scenario: str, names: Sequence[str]) -> bool:
    return sum(len(rates(results, scenario, name)) > 1 for name in names) <= NAMED


def _caption(annotated: bool, others: Sequence[str]) -> str:
    which = (
        "beside it: the factor on all of them, or on those of the understanding weights"
        if annotated
        else "filled: the variant's own; hollow: the other points of the grid"
    )
    said = f"Up and right is better. Each point is one choice of learning rates ({which}), mean and 95% interval over seeds. "
    if others:
        said += "Grey dots are the other variants', and the dashed line joins what no variant at any rate is better than. "
    return said + "The level line is the start's understanding, and an arrow stands for what lies further out."


def _panel(axis: Axes, results: Results, scenario: str, names: Sequence[str], measure: Measure, look: Mapping[str, Look]) -> bool:
    """Draw one measure; whether there was anything to draw."""
    every = [found for variant in results.variants(scenario) if variant != START
             if (found := mean_point(results, scenario, variant, measure))]  # fmt: skip
    means = [(far.mean, kept.mean) for far, kept in every]
    if len({name for name in results.names if name != START}) > len(names):
        axis.plot([100 * x for x, _ in means], [100 * y for _, y in means], "o", color=GRID, ms=5, zorder=0)
        best = undominated(means)
        axis.plot([100 * x for x, _ in best], [100 * y for _, y in best], color=MUTED, lw=1, ls=(0, (4, 3)), zorder=1)
    start = results.start(scenario, measure)
    own = {name: mine for name in names if (mine := _points(results, scenario, name, measure))}
    if every:
        _frame(axis, every, start)
    for name, mine in own.items():
        _arrows(axis, mine.values(), look[name].color)
        _line(axis, results, scenario, name, mine, look[name], annotate=_has_room(results, scenario, names))
    if start is not None:
        axis.axhline(100 * start, color=INK, lw=1.2, label=results.title(START), zorder=1)
    name_panel(axis, f"{measure.label} kept against GenEval reached, %")
    axis.set_xlabel("GenEval overall")
    axis.set_ylabel(f"{measure.label} {measure.metric}")
    axis.grid(visible=True, color=GRID)
    return bool(every)


def _points(results: Results, scenario: str, name: str, measure: Measure) -> dict[str, tuple[Estimate, Estimate]]:
    """Rate -> where the variant ended, by rising generation."""
    found = {rate: mean_point(results, scenario, at_rate(name, rate), measure) for rate in rates(results, scenario, name)}
    return dict(sorted(((rate, point) for rate, point in found.items() if point), key=lambda dot: dot[1][0].mean))


def _frame(axis: Axes, every: Sequence[tuple[Estimate, Estimate]], start: float | None) -> None:
    """Limits by where all variants are, the same for all groups; intervals end at them.

    One model that has lost everything must not press all others together.
    """
    far, kept = (np.array([100 * point[side].mean for point in every]) for side in (0, 1))
    for limit, values in ((axis.set_xlim, far), (axis.set_ylim, np.array([*kept, *([] if start is None else [100 * start])]))):
        drops = values.max() - values
        low = values[drops <= FAR * np.median(drops)].min()
        margin = max(MARGIN * (values.max() - low), 0.5)
        limit(low - margin, values.max() + margin)


def _arrows(axis: Axes, shown: Iterable[tuple[Estimate, Estimate]], color: str) -> None:
    """Say at the edge what lies beyond it."""
    left, bottom = axis.get_xlim()[0], axis.get_ylim()[0]
    for far, kept in shown:
        x, y = 100 * far.mean, 100 * kept.mean
        if x < left or y < bottom:
            sign = "\u2190" if y >= bottom else "\u2193" if x >= left else "\u2199"
            axis.annotate(
                f"{sign} {points(far.mean)}, {points(kept.mean)}",
                (max(x, left), max(y, bottom)),
                (3, 3),
                textcoords="offset points",
                fontsize=8.5,
                color=color,
            )


def _line(
    axis: Axes,
    results: Results,
    scenario: str,
    name: str,
    found: Mapping[str, tuple[Estimate, Estimate]],
    shape: Look,
    *,
    annotate: bool,
) -> None:
    """The variant's points, joined, each with the interval of both scores."""
    dots = list(found.items())
    x, y = ([100 * point[side].mean for _, point in dots] for side in (0, 1))
    wide, tall = ([100 * (point[side].half_width or 0) for _, point in dots] for side in (0, 1))
    cross: Any = {"color": shape.color, "elinewidth": 0.9 if annotate else 0.6}
    axis.errorbar(x, y, xerr=wide, yerr=tall, **cross)
    own = {at_rate(name, rate) in results.leading(scenario) for rate, _ in dots}
    for (rate, _), left, bottom in zip(dots, x, y, strict=True):
        filled = annotate or len(own) == 1 or at_rate(name, rate) in results.leading(scenario)
        face = shape.color if filled else PAPER
        axis.plot(
            left,
            bottom,
            shape.marker,
            color=shape.color,
            ms=7,
            mfc=face,
            mec=PAPER if filled else shape.color,
            mew=0.8 if filled else 1.4,
        )
        if annotate and len(dots) > 1:
            axis.annotate(rate_name(rate), (left, bottom), (5, 5), textcoords="offset points", color=shape.color, fontsize=8.5)
    axis.plot([], [], shape.marker, color=shape.color, ls="-", ms=7, mec=PAPER, mew=0.8, label=shape.title)
