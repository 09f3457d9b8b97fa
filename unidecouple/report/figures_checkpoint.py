"""Figures of a single checkpoint: alignment of pictures and words by depth, and what its parts are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from unidecouple.batch import TASK_KEYS
from unidecouple.report.figures_diagnosis import name_columns, name_room
from unidecouple.report.style import INK, TASK_COLORS, Plot, canvas, legend, name_panel, to_svg
from unidecouple.report.wording import TASK_NAMES, decimal, listed

WIDTH = 11.6
_DARK, _LIGHT = "#16181c", "#ffffff"  # text on coloured cells, whatever the page's theme
_LEAST_COST = 0.02  # nats; smaller costs are not blown up to full colour
_ALL = "all"


def alignment_curves(name: str, tasks: Mapping[str, Mapping[str, Any]]) -> Plot:
    """Mutual kNN over depth, each side alone and both in one sequence; ``tasks`` as ``measure_alignment`` gives it."""
    figure, axes = canvas(WIDTH, 3.4, 1, 2, sharey=True)
    panels = {"apart": "Picture and words each alone", "together": "In one sequence, as the task runs"}
    for axis, (key, panel) in zip(axes, panels.items(), strict=True):
        for task, found in tasks.items():
            x = [depth["layer"] for depth in found["depths"]]
            values = [depth[key] for depth in found["depths"]]
            axis.plot(x, values, "o-", ms=4.5, color=TASK_COLORS[task], label=TASK_NAMES[task])
            axis.axhline(found["chance"], color=TASK_COLORS[task], lw=1.5, ls=":", label=f"chance, {TASK_NAMES[task]}")
            axis.set_xticks(x)
        name_panel(axis, panel)
        axis.set_xlabel("depth (0: input of the first layer)")
    axes[0].set_ylabel("shared neighbours")
    axes[0].set_ylim(bottom=0)
    legend(figure, axes)
    caption = " ".join(_course(task, found) for task, found in tasks.items())
    return Plot(to_svg(figure, name), f"Alignment of pictures and words by depth. {caption}", caption)


def _course(task: str, found: Mapping[str, Any]) -> str:
    values = [depth["apart"] for depth in found["depths"]]
    top = int(np.argmax(values))
    return (
        f"{TASK_NAMES[task].capitalize()}, each alone: {decimal(values[0], 2)} at the input, {decimal(values[top], 2)} at its most "
        f"(depth {top}), {decimal(values[-1], 2)} at the output; chance is {decimal(found['chance'], 2)} "
        f"({found['pairs']} pairs, {found['neighbours']} neighbours)."
    )


def ablation_map(name: str, costs: Sequence[Mapping[str, Any]]) -> Plot:
    """Cost of every part by layer, one panel a task; ``costs`` as ``measure_ablations`` gives them."""
    parts = list(dict.fromkeys(cost["part"] for cost in costs))
    layers = sorted({cost["layer"] for cost in costs if cost["layer"] is not None})
    tasks = [task for task in TASK_KEYS if any(cost["task"] == task for cost in costs)]
    some = any(cost["layer"] is None for cost in costs)
    rows = [_ALL] * some + [f"layer {layer}" for layer in layers]
    limit = max([_LEAST_COST, *(abs(cost["cost"]) for cost in costs if cost["layer"] is not None)])
    figure, axes = canvas(WIDTH, 1.2 + 0.36 * len(rows) + name_room(parts, len(tasks)), 1, len(tasks))
    for axis, task in zip(axes, tasks, strict=True):
        grid = np.full((len(rows), len(parts)), np.nan)
        shown = [cost for cost in costs if cost["task"] == task]
        for cost in shown:
            row = 0 if cost["layer"] is None else some + layers.index(cost["layer"])
            grid[row, parts.index(cost["part"])] = cost["cost"]
        axis.pcolormesh(grid, cmap="RdBu_r", vmin=-limit, vmax=limit)
        for (row, column), value in np.ndenumerate(grid):
            if not np.isnan(value):
                color = _LIGHT if abs(value) > 0.6 * limit else _DARK
                axis.text(column + 0.5, row + 0.5, decimal(value, 2), ha="center", va="center", fontsize=8, color=color)
        _label(axis, f"Loss of {TASK_NAMES[task]}, + nats a token", parts, rows, len(tasks))
        if some:
            axis.axhline(1, color=INK, lw=1.2)
    caption = f"{_dearest(costs, tasks)} Red costs, blue gains; the colours are scaled to single layers."
    return Plot(to_svg(figure, name), f"What taking parts away costs. {caption}", caption)


def _dearest(costs: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> str:
    """What is dearest to each task, in all layers if that was measured."""
    told = []
    for task in tasks:
        mine = [cost for cost in costs if cost["task"] == task]
        whole = [cost for cost in mine if cost["layer"] is None] or mine
        most = max(whole, key=lambda cost: cost["cost"])
        place = "in all layers" if most["layer"] is None else f"in layer {most['layer']}"
        error = "" if most["error"] is None else f" ± {decimal(most['error'], 2)}"
        told.append(f"{TASK_NAMES[task]} loses {decimal(most['cost'], 2)}{error} nats a token without the {most['part']} {place}")
    return f"{listed(told)} (± standard error over batches).".capitalize()


def _label(axis: Axes, title: str, columns: Sequence[str], rows: Sequence[str], panels: int) -> None:
    name_panel(axis, title)
    name_columns(axis, columns, panels)
    axis.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axis.invert_yaxis()
    axis.grid(visible=False)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
