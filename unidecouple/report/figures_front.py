"""The figure of fronts: understanding against generation over learning rates, a group of variants at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unidecouple.eval.benchmark import Metric
from unidecouple.figures.style import GRID, INK, MUTED, PAPER, WIDTH, Plot, VariantStyle, canvas, legend, name_panel, to_svg
from unidecouple.figures.wording import column_name, level, listed, scale_of
from unidecouple.report.fronts import at_rate, front_axes, mean_point, rates, undominated
from unidecouple.report.results import START, Results, rate_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED = 2
"""Fronts up to which each point says its learning rates; with more there is no room."""
FAR = 5.0
"""What lies further below the best than so many times the median is an arrow at the edge, with its two scores."""
MARGIN = 0.07
"""Of a panel's width and height, around its points."""
LEAST_MARGIN = 0.005
"""Around points that all lie together, as a share."""


def front(results: Results, scenario: str, names: Sequence[str], look: Mapping[str, VariantStyle], ids: str) -> Plot | None:
    """Fronts of the variants ``names``, before the points of all others and the common front; ``ids`` names the figure."""
    along, kept = front_axes(results)
    if along is None:
        return None
    figure, axes = canvas(WIDTH, 4.4, 1, len(kept))
    drawn = [_Panel(axis, results, scenario, along, up).draw(names, look) for axis, up in zip(axes, kept, strict=True)]
    if not any(drawn):
        return None
    legend(figure, axes, columns=4)
    alt = f"Fronts in {scenario}: understanding scores over {along.title} for {listed([results.title(name) for name in names])}."
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


@dataclass(frozen=True)
class _Dot:
    """Where a variant ended, and half its intervals, as printed: shares in per cent."""

    x: float
    y: float
    wide: float
    tall: float


@dataclass(frozen=True)
class _Panel:
    """One panel: the metric ``up`` over the metric ``along``, of the variants of ``scenario``."""

    axis: Axes
    results: Results
    scenario: str
    along: Metric
    up: Metric

    def draw(self, names: Sequence[str], look: Mapping[str, VariantStyle]) -> bool:
        """Draw it; whether there was anything to draw."""
        axis, results = self.axis, self.results
        every = [dot for variant in results.variants(self.scenario) if variant != START if (dot := self._dot(variant))]
        if len({name for name in results.names if name != START}) > len(names):
            axis.plot([dot.x for dot in every], [dot.y for dot in every], "o", color=GRID, ms=5, zorder=0)
            best = undominated([(dot.x, dot.y) for dot in every])
            axis.plot([x for x, _ in best], [y for _, y in best], color=MUTED, lw=1, ls=(0, (4, 3)), zorder=1)
        measured = results.start(self.scenario, self.up)
        start = None if measured is None else scale_of(self.up.unit) * measured
        own = {name: mine for name in names if (mine := self._by_rate(name))}
        if every:
            self._frame(every, start)
        for name, mine in own.items():
            self._arrows(mine.values(), look[name].color)
            self._line(name, mine, look[name], annotate=_has_room(results, self.scenario, names))
        if start is not None:
            axis.axhline(start, color=INK, lw=1.2, label=results.title(START), zorder=1)
        percent = ", %" if self.up.unit == self.along.unit == "share" else ""
        name_panel(axis, f"{self.up.title} kept against {self.along.title} reached{percent}")
        axis.set_xlabel(column_name(self.along))
        axis.set_ylabel(column_name(self.up))
        axis.grid(visible=True, color=GRID)
        return bool(every)

    def _dot(self, variant: str) -> _Dot | None:
        point = mean_point(self.results, self.scenario, variant, self.up)
        if point is None:
            return None
        (far, kept), x, y = point, scale_of(self.along.unit), scale_of(self.up.unit)
        return _Dot(x * far.mean, y * kept.mean, x * (far.half_width or 0), y * (kept.half_width or 0))

    def _by_rate(self, name: str) -> dict[str, _Dot]:
        """Rate -> where the variant ended, by rising generation."""
        found = {rate: self._dot(at_rate(name, rate)) for rate in rates(self.results, self.scenario, name)}
        return dict(sorted(((rate, dot) for rate, dot in found.items() if dot), key=lambda item: item[1].x))

    def _frame(self, every: Sequence[_Dot], start: float | None) -> None:
        """Limits by where all variants are, the same for all groups; intervals end at them.

        One model that has lost everything must not press all others together.
        """
        far = np.array([dot.x for dot in every])
        kept = np.array([*(dot.y for dot in every), *([] if start is None else [start])])
        for limit, values, metric in ((self.axis.set_xlim, far, self.along), (self.axis.set_ylim, kept, self.up)):
            drops = values.max() - values
            low = values[drops <= FAR * np.median(drops)].min()
            margin = max(MARGIN * (values.max() - low), LEAST_MARGIN * scale_of(metric.unit))
            limit(low - margin, values.max() + margin)

    def _arrows(self, shown: Iterable[_Dot], color: str) -> None:
        """Say at the edge what lies beyond it."""
        left, bottom = self.axis.get_xlim()[0], self.axis.get_ylim()[0]
        scales = scale_of(self.along.unit), scale_of(self.up.unit)
        for dot in shown:
            if dot.x < left or dot.y < bottom:
                sign = "\u2190" if dot.y >= bottom else "\u2193" if dot.x >= left else "\u2199"
                texts = level(dot.x / scales[0], self.along.unit), level(dot.y / scales[1], self.up.unit)
                where = (max(dot.x, left), max(dot.y, bottom))
                style: Any = {"textcoords": "offset points", "fontsize": 8.5, "color": color}
                self.axis.annotate(f"{sign} {', '.join(texts)}", where, (3, 3), **style)

    def _line(self, name: str, found: Mapping[str, _Dot], shape: VariantStyle, *, annotate: bool) -> None:
        """The variant's points, joined, each with the interval of both scores."""
        axis, leading = self.axis, self.results.leading(self.scenario)
        dots = list(found.values())
        cross: Any = {"color": shape.color, "elinewidth": 0.9 if annotate else 0.6}
        wide, tall = [dot.wide for dot in dots], [dot.tall for dot in dots]
        axis.errorbar([dot.x for dot in dots], [dot.y for dot in dots], xerr=wide, yerr=tall, **cross)
        own = {at_rate(name, rate) in leading for rate in found}
        for rate, dot in found.items():
            filled = annotate or len(own) == 1 or at_rate(name, rate) in leading
            edge: Any = {"mec": PAPER, "mew": 0.8} if filled else {"mec": shape.color, "mew": 1.4}
            face = shape.color if filled else PAPER
            axis.plot(dot.x, dot.y, shape.marker, color=shape.color, ms=7, mfc=face, **edge)
            if annotate and len(dots) > 1:
                label: Any = {"textcoords": "offset points", "color": shape.color, "fontsize": 8.5}
                axis.annotate(rate_name(rate), (dot.x, dot.y), (5, 5), **label)
        axis.plot([], [], shape.marker, color=shape.color, ls="-", ms=7, mec=PAPER, mew=0.8, label=shape.title)
