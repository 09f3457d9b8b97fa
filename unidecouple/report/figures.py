"""Figures of scores and training: all variants at a glance, losses, forgetting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unidecouple.batch import TASK_KEYS
from unidecouple.eval.benchmark import Metric
from unidecouple.eval.suite import headlines
from unidecouple.figures.estimates import Curve, estimate
from unidecouple.figures.style import INK, MUTED, PAPER, WIDTH, Plot, VariantStyle, canvas, legend, name_panel, to_svg
from unidecouple.figures.wording import TASK_NAMES, axis_name, listed, scale_of
from unidecouple.report import logs
from unidecouple.report.results import START, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Records = Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]
"""Variant -> records of each of its runs."""


@dataclass(frozen=True)
class MeanCurve:
    """Mean, lowest and highest value over runs at the steps that all of them logged."""

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def mean_curve(curves: Sequence[Curve]) -> MeanCurve:
    """Over ``curves`` (at least one), at the steps they share."""
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = np.array([[curve[step] for step in steps] for curve in curves]).reshape(len(curves), len(steps))
    return MeanCurve(steps, list(values.mean(0)), list(values.min(0)), list(values.max(0)))


def overview(results: Results, look: Mapping[str, VariantStyle]) -> Plot | None:
    """Final scores of every variant in every scenario, with intervals, the start, the floor and the ceiling."""
    lines = [(scenario, variant) for scenario in results.scenarios for variant in (*results.trained(scenario), "")][:-1]
    if not results.metrics or not any(variant for _, variant in lines):
        return None
    figure, axes = canvas(WIDTH, 1.1 + 0.25 * (len(lines) + len(results.scenarios)), 1, len(results.metrics), sharey=True)
    heights, ticks = _rows(lines, look)
    for axis, metric in zip(axes, results.metrics, strict=True):
        scale = scale_of(metric.unit)
        for (scenario, variant), height in zip(lines, heights, strict=True):
            values = list(results.final(scenario, variant, metric).values()) if variant else []
            if values:
                value, shape = estimate(values), look[variant]
                error = None if value.half_width is None else scale * value.half_width
                marker: Any = {"fmt": shape.marker, "color": shape.color, "ms": 7, "capsize": 3, "mec": PAPER, "mew": 0.8}
                axis.errorbar(scale * value.mean, height, xerr=error, **marker)
        for scenario in results.scenarios:
            own = [height for (name, variant), height in zip(lines, heights, strict=True) if name == scenario and variant]
            _marks(axis, results, scenario, metric, (min(own) - 0.5, max(own) + 0.5) if own else (0, 0))
        name_panel(axis, axis_name(metric))
        if metric.unit == "share":
            axis.set_xlim(-2, 102)
        axis.grid(visible=False, axis="y")
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
    axes[0].set_ylim(max(ticks) + 0.8, -0.8)
    axes[0].set_yticks(list(ticks), list(ticks.values()))
    for label in axes[0].get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in results.scenarios else "normal")
    legend(figure, axes)
    alt = f"Scores of {_named((n for n in results.names if n != START), look)} in {listed(results.scenarios)}."
    caption = (
        "Mean and 95% interval over seeds. Solid line: the start, before training. Dotted: the floor, what ignoring the input "
        "gets. Dashed: the ceiling, what a perfect model gets."
    )
    return Plot(to_svg(figure, "overview"), alt, caption)


def _rows(lines: Sequence[tuple[str, str]], look: Mapping[str, VariantStyle]) -> tuple[list[int], dict[int, str]]:
    """Height of each line, one left free above each scenario for its name; and the text at each height."""
    heights: list[int] = []
    ticks: dict[int, str] = {}
    offset = 0
    for number, (scenario, variant) in enumerate(lines):
        if number == 0 or lines[number - 1][0] != scenario:
            ticks[number + offset] = scenario
            offset += 1
        heights.append(number + offset)
        if variant:
            ticks[number + offset] = look[variant].title
    return heights, ticks


def _marks(axis: Axes, results: Results, scenario: str, metric: Metric, span: tuple[float, float]) -> None:
    rows = [row for variant in results.variants(scenario) for row in results.final_rows(scenario, variant, metric).values()]
    floor = next((row.floor for row in rows if row.floor is not None), None)
    ceiling = next((row.ceiling for row in rows if row.ceiling is not None), None)
    marks = [("start", results.start(scenario, metric), INK, "-"), ("floor", floor, MUTED, ":"), ("ceiling", ceiling, MUTED, "--")]
    for label, value, color, dash in marks:
        if value is not None:
            axis.plot([scale_of(metric.unit) * value] * 2, span, color=color, ls=dash, lw=1.4, label=label, zorder=1)


def _named(variants: Iterable[str], look: Mapping[str, VariantStyle]) -> str:
    return listed([look[variant].title for variant in variants])


def loss_curves(name: str, scenario: str, records: Records, look: Mapping[str, VariantStyle]) -> Plot | None:
    """Training loss of each task against steps, and how often the task router is right where there is one."""
    panels = [(f"loss/{task}", f"{TASK_NAMES[task].capitalize()} loss") for task in TASK_KEYS]
    router = [f"router_accuracy/{task}" for task in TASK_KEYS]
    every = (record for runs in records.values() for run in runs for record in run)
    logged = {key for record in every for key, value in record.items() if value is not None}
    shown = [panel for panel in panels if panel[0] in logged]
    if not shown:
        return None
    figure, axes = canvas(WIDTH, 3.3, 1, len(shown) + bool(logged & set(router)))
    for axis, (key, title) in zip(axes, shown, strict=False):
        for variant, runs in records.items():
            _line(axis, _curves(runs, key), look[variant])
        name_panel(axis, title)
    if logged & set(router):
        for key, dash in zip(router, ("-", (0, (3, 2))), strict=True):
            for variant, runs in records.items():
                _line(axes[-1], _curves(runs, key), look[variant], dash, 100, named=False)
        name_panel(axes[-1], "Task router right, % (dashed: generation)")
    for axis in axes:
        axis.set_xlabel("step")
    caption = "Mean over seeds, band from lowest to highest." + _mark_stages(axes, records, look)
    legend(figure, axes)
    alt = f"Training losses in {scenario} by task for {_named(records, look)}."
    return Plot(to_svg(figure, f"loss-{name}"), alt, caption)


def _mark_stages(axes: Sequence[Axes], records: Records, look: Mapping[str, VariantStyle]) -> str:
    """Mark where the next stages of the focus begin; what the caption says of it."""
    focus = next((variant for variant in records if look[variant].role == "focus"), None)
    if focus is None:
        return ""
    for step, _ in logs.stage_starts(records[focus][0]):
        for axis in axes:
            axis.axvline(step, color=look[focus].color, lw=1, ls=":")
    return f" A dotted line marks the start of the next stage of {look[focus].title}."


def _curves(runs: Sequence[Sequence[Mapping[str, Any]]], key: str) -> list[Curve]:
    return [curve for run in runs if (curve := logs.curve(run, key))]


def _line(
    axis: Axes, curves: Sequence[Curve], shape: VariantStyle, dash: Any = "-", scale: float = 1, *, named: bool = True
) -> None:
    if not curves:
        return
    drawn = mean_curve(curves)
    low, mean, high = (scale * np.array(values) for values in (drawn.low, drawn.mean, drawn.high))
    axis.plot(drawn.steps, mean, color=shape.color, ls=dash, label=shape.title if named else "_nolegend_")
    axis.fill_between(drawn.steps, low, high, color=shape.color, alpha=0.16, lw=0)


def forgetting(name: str, scenario: str, records: Records, look: Mapping[str, VariantStyle]) -> Plot | None:
    """Validation scores during training, from step 0."""
    curves = {
        metric: {
            variant: found
            for variant, runs in records.items()
            if (found := [curve for run in runs if (curve := logs.score_curve(run, metric.benchmark, metric.metric))])
        }
        for metric in headlines()
    }
    shown = sorted((metric for metric in headlines() if curves[metric]), key=lambda metric: metric.rank)
    if not shown:
        return None
    figure, axes = canvas(WIDTH, 3.3, 1, len(shown))
    for axis, metric in zip(axes, shown, strict=True):
        scale = scale_of(metric.unit)
        for variant, of_runs in curves[metric].items():
            _line(axis, of_runs, look[variant], scale=scale)
            drawn = mean_curve(of_runs)
            dot = look[variant]
            axis.plot(drawn.steps, scale * np.array(drawn.mean), dot.marker, color=dot.color, ms=5, mec=PAPER, mew=0.6)
        name_panel(axis, axis_name(metric))
        axis.set_xlabel("step")
    legend(figure, axes)
    alt = f"Validation scores over training in {scenario} for {_named(records, look)}."
    caption = (
        "Few validation samples, so curves are noisier than the final scores and not equal to them. "
        "Mean over seeds, band from lowest to highest."
    )
    return Plot(to_svg(figure, f"forgetting-{name}"), alt, caption)
