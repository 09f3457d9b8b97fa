"""What every variant differs from the control by, score by score: a forest plot, for grids of so many that a table hides it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from unidecouple.eval.benchmark import Metric
from unidecouple.figures.style import INK, MUTED, PAPER, WIDTH, Plot, VariantStyle, canvas, name_panel, to_svg
from unidecouple.figures.wording import column_name, scale_of, signed, unit_words
from unidecouple.report.results import Results, split_rate
from unidecouple.report.significance import CorrectedDifference, compared

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEWEST = 6
"""Variants from which on the figure is drawn."""
FAR = 4.0
"""What reaches further than so many times the median is cut off at the edge, with its value."""


def forest(results: Results, scenario: str, look: Mapping[str, VariantStyle]) -> Plot | None:
    """Differences to the control, paired by seed, with 95% intervals; None for fewer than ``FEWEST`` variants.

    Each variant is drawn at its own rate. A difference whose interval includes zero is hollow and grey.
    """
    control, found = results.reference(scenario), compared(results, scenario, results.leading(scenario))
    variants = [variant for variant in results.leading(scenario) if any(key[0] == variant for key in found)]
    if control is None or len(variants) < FEWEST:
        return None
    figure, axes = canvas(WIDTH, 0.8 + 0.25 * len(variants), 1, len(results.metrics), sharey=True)
    for axis, metric in zip(axes, results.metrics, strict=True):
        cells = [found.get((variant, metric)) for variant in variants]
        _panel(axis, metric, cells, [look[split_rate(variant)[0]] for variant in variants])
        name_panel(axis, f"{column_name(metric)}, {unit_words(metric.unit)}")
    axes[0].set_ylim(len(variants) - 0.4, -0.6)
    axes[0].set_yticks(range(len(variants)), [results.title(variant) for variant in variants])
    words = _in_words(found, variants, results.metrics)
    alt = f"Differences of {len(variants)} variants to {results.title(control)} in {scenario}: {words}."
    caption = (
        f"Difference to {results.title(control)}, paired by seed, with its 95% interval. Filled: the interval excludes zero. "
        "Star: it holds after Holm's correction. An arrow stands for what lies further out."
    )
    return Plot(to_svg(figure, f"forest-{scenario}"), alt, caption)


def _panel(axis: Axes, metric: Metric, cells: Sequence[CorrectedDifference | None], looks: Sequence[VariantStyle]) -> None:
    scale = scale_of(metric.unit)
    limit = _limit([cell for cell in cells if cell is not None], scale)
    axis.axvline(0, color=INK, lw=1)
    for height, (cell, shape) in enumerate(zip(cells, looks, strict=True)):
        if cell is None:
            continue
        mean, half, shown = scale * cell.delta.mean, scale * (cell.delta.half_width or 0.0), cell.delta.is_shown
        color = shape.color if shown else MUTED
        if abs(mean) > limit:
            side = np.sign(mean)
            axis.plot(side * limit, height, ">" if side > 0 else "<", color=color, ms=7)
            align = "right" if side > 0 else "left"
            axis.text(
                side * limit * 0.94, height, signed(cell.delta.mean, metric.unit), ha=align, va="center", fontsize=8.5, color=INK
            )
            continue
        axis.plot([max(mean - half, -limit), min(mean + half, limit)], [height] * 2, color=color, lw=1.6, zorder=2)
        face = color if shown else PAPER
        axis.plot(mean, height, shape.marker, ms=6.5, mfc=face, mec=color, mew=1.1, zorder=3)
        if cell.holds:
            axis.text(min(mean + half, limit), height, " *", ha="left", va="center", color=color, weight="bold")
    axis.set_xlim(-1.06 * limit, 1.06 * limit)
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)


def _limit(cells: Sequence[CorrectedDifference], scale: float) -> float:
    """Half the width of a panel, in the unit shown: the furthest end of an interval that is not ``FAR`` from what is usual."""
    reach = [scale * (abs(cell.delta.mean) + (cell.delta.half_width or 0.0)) for cell in cells]
    near = [one for one in reach if one <= FAR * float(np.median(reach))]
    return max([*near, 0.001 * scale])


def _in_words(found: Mapping[tuple[str, Metric], CorrectedDifference], variants: Sequence[str], metrics: Sequence[Metric]) -> str:
    """In numbers, for those who cannot see the figure: how many lie above and below."""
    words = []
    for metric in metrics:
        deltas = [found[variant, metric].delta for variant in variants if (variant, metric) in found]
        above, below = (sum(d.is_shown and way * d.mean > 0 for d in deltas) for way in (1, -1))
        words.append(f"{metric.title} {above} above, {below} below")
    return "; ".join(words)
