"""Figures of what happens inside: gradient conflict with its noise floor, and where the routers send tokens."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from unidecouple.batch import TASK_KEYS
from unidecouple.diagnose.gradient_conflict import Conflict
from unidecouple.report.estimates import SeedEstimate, estimate
from unidecouple.report.logs import ConflictLog, RoutingLayer
from unidecouple.report.style import INK, MUTED, PAPER, TASK_COLORS, Plot, VariantStyle, canvas, name_panel, to_svg
from unidecouple.report.wording import TASK_NAMES, decimal, listed

WIDTH = 11.6
_DARK, _LIGHT = "#16181c", "#ffffff"  # text on coloured cells, whatever the page's theme
_GROUPS = (*TASK_COLORS.values(), "#6f9f78", "#9f77a8")
MEASURED = ("cosine", "cosine_std", "floor", "floor_std", "norm_ratio")  # what ``Conflict`` holds after its place, in order
_LETTERS = 150  # of columns' names, from one side of the page to the other
_LEAST_SCALE = 0.05  # cosines below it are not blown up to full colour


def mean_conflicts(seeds: Sequence[ConflictLog]) -> list[tuple[Conflict, bool]]:
    """Means over ``seeds`` (at least one) of the matrices that all of them measured, and whether each differs from its floor.

    It does if the 95% interval of ``cosine - floor`` over seeds excludes zero; of one seed, if the two lie more than twice their
    joint standard error over batches apart. (Logs of earlier versions do not say of how many batches they are; there it is the
    spread itself, a strict test.)
    """
    by_place = [{(matrix.layer, matrix.part): matrix for matrix in log.matrices} for log in seeds]
    out = []
    for place in by_place[0]:
        found = [matrices[place] for matrices in by_place if place in matrices]
        if len(found) < len(by_place):
            continue
        gap = estimate([matrix.cosine - matrix.floor for matrix in found])
        if gap.count == 1:
            error = float(np.hypot(found[0].cosine_std, found[0].floor_std)) / math.sqrt(seeds[0].pairs)
            gap = SeedEstimate(gap.mean, 2 * error, 1)
        means = (float(np.mean([getattr(matrix, name) for matrix in found])) for name in MEASURED)
        out.append((Conflict(*place, *means), gap.is_shown))
    return out


def color_limit(logs: Sequence[ConflictLog]) -> float:
    """Largest absolute cosine of ``logs``, so that maps drawn with one limit compare."""
    return max([_LEAST_SCALE, *(max(abs(matrix.cosine), abs(matrix.floor)) for log in logs for matrix in log.matrices)])


def conflict_map(name: str, title: str, seeds: Sequence[ConflictLog], limit: float) -> Plot | None:
    """Cosine by layer and weight type, its floor, and the difference, marked where the two differ. None if empty.

    Colours run from ``-limit`` to ``limit``; see ``color_limit``.
    """
    found = mean_conflicts(seeds)
    if not found:
        return None
    matrices = [matrix for matrix, _ in found]
    layers, parts = sorted({matrix.layer for matrix in matrices}), list(dict.fromkeys(matrix.part for matrix in matrices))
    grids = {
        "Between the tasks": _grid([(matrix, matrix.cosine) for matrix in matrices], layers, parts),
        "Noise floor: within one task": _grid([(matrix, matrix.floor) for matrix in matrices], layers, parts),
        "Tasks minus floor (• told apart)": _grid([(matrix, matrix.cosine - matrix.floor) for matrix in matrices], layers, parts),
    }
    figure, axes = canvas(WIDTH, 1.1 + 0.34 * len(layers) + name_room(parts, len(grids)), 1, len(grids))
    marked = {(layers.index(matrix.layer), parts.index(matrix.part)) for matrix, differs in found if differs}
    for axis, (panel, grid) in zip(axes, grids.items(), strict=True):
        axis.pcolormesh(grid, cmap="RdBu", vmin=-limit, vmax=limit)
        _write(axis, grid, 0.6 * limit, marked if panel.startswith("Tasks") else set())
        _cells(axis, panel, parts, layers, len(grids))
    below = sum(differs and matrix.cosine < matrix.floor for matrix, differs in found)
    across, within = (float(np.mean([getattr(matrix, name) for matrix in matrices])) for name in ("cosine", "floor"))
    rule = "95% interval over seeds" if len(seeds) > 1 else _rule(seeds[0])
    caption = (
        f"Mean cosine {decimal(across, 3, plus=True)} between the tasks, {decimal(within, 3, plus=True)} within one task. "
        f"In {below} of {len(found)} weight matrices the tasks' cosine lies below its floor by more than noise ({rule})."
    )
    return Plot(to_svg(figure, name), f"{title}: cosine of the two tasks' gradients by layer and weight type. {caption}", caption)


def _rule(log: ConflictLog) -> str:
    """How one seed's matrices are distinguished from noise."""
    if log.pairs == 1:
        return "one seed: more than twice the spread over batches"
    return f"twice the standard error over {log.pairs} pairs of batches; about one matrix in 40 would by chance"


def ratio_map(name: str, title: str, log: ConflictLog) -> Plot | None:
    """Norm of generation's gradient over understanding's by layer and weight type, on a logarithmic scale of colours."""
    if not log.matrices:
        return None
    layers, parts = sorted({matrix.layer for matrix in log.matrices}), list(dict.fromkeys(matrix.part for matrix in log.matrices))
    grid = _grid([(matrix, matrix.norm_ratio) for matrix in log.matrices], layers, parts)
    figure, axes = canvas(WIDTH, 1.1 + 0.34 * len(layers))
    limit = max(1.0, float(np.nanmax(np.abs(np.log2(grid)))))
    axes[0].pcolormesh(np.log2(grid), cmap="PuOr_r", vmin=-limit, vmax=limit)
    for (row, column), value in np.ndenumerate(grid):
        if not np.isnan(value):
            color = _LIGHT if abs(np.log2(value)) > 0.6 * limit else _DARK
            text = f"{value:.2g}" if value < 10 else f"{value:.0f}"
            axes[0].text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color=color)
    _cells(axes[0], "Gradient norm, generation over understanding", parts, layers, 1)
    typical = float(np.nanmedian(grid))
    larger = "generation's" if typical > 1 else "understanding's"
    caption = (
        f"The median matrix has a gradient {max(typical, 1 / typical):.1f} times as large from {larger} loss (orange: generation "
        "is larger, violet: understanding)."
    )
    return Plot(to_svg(figure, name), f"{title}: {caption}", caption)


def routing_map(name: str, title: str, layers: Sequence[RoutingLayer], look: VariantStyle) -> Plot | None:
    """Shares of groups and experts by task and layer, and alpha. None if there are no layers."""
    if not layers:
        return None
    experts = {task: _experts(layers, task) for task in TASK_KEYS}
    shown = [task for task in TASK_KEYS if experts[task] is not None]
    alphas = [(position, layer.alpha) for position, layer in enumerate(layers) if layer.alpha is not None]
    groups = max((len(share) for layer in layers for share in layer.group_share.values()), default=1)
    figure, axes = canvas(WIDTH, 1.3 + 0.4 * len(layers), 1, (groups > 1) + len(shown) + bool(alphas))
    if groups > 1:
        _group_bars(axes[0], layers)
    for axis, task in zip(axes[groups > 1 :], shown, strict=False):
        grid = np.array(experts[task])
        axis.pcolormesh(grid, cmap="Blues", vmin=0, vmax=1)
        _write(axis, grid, 0.6, set())
        names = [f"e{n}" for n in range(grid.shape[1])]
        _cells(axis, f"Experts of {TASK_NAMES[task]} tokens", names, [layer.layer for layer in layers], len(axes))
        for edge in itertools.accumulate(layers[0].sizes[:-1]):
            axis.axvline(edge, color=_DARK, lw=1.4)
    if alphas:
        _alpha_bars(axes[-1], layers, alphas, look)
    caption = "One group only: the tasks share all experts."
    if groups > 1:
        own = [(task, _own_share(layers, number, task)) for number, task in enumerate(TASK_KEYS) if task in shown]
        caption = listed([f"{100 * share:.1f}% of {TASK_NAMES[task]} tokens" for task, share in own])
        caption += " go to their own task's group, on average over layers."
    if alphas:
        caption += f" Alpha, the weight of the shared expert, is {decimal(float(np.mean([a for _, a in alphas])), 2)} on average."
    return Plot(to_svg(figure, name), f"{title}: {caption}", caption)


def _grid(values: Sequence[tuple[Conflict, float]], layers: Sequence[int], parts: Sequence[str]) -> np.ndarray:
    """(layers, parts), NaN where nothing was measured."""
    grid = np.full((len(layers), len(parts)), np.nan)
    for matrix, value in values:
        grid[layers.index(matrix.layer), parts.index(matrix.part)] = value
    return grid


def _write(axis: Axes, grid: np.ndarray, strong: float, marked: set[tuple[int, int]]) -> None:
    """The value in each cell, light on colours stronger than ``strong``, with a dot where ``marked``."""
    for (row, column), value in np.ndenumerate(grid):
        if not np.isnan(value):
            text = decimal(value, 2) + (" •" if (row, column) in marked else "")
            color = _LIGHT if abs(value) > strong else _DARK
            axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color=color)


def name_room(names: Sequence[str], panels: int) -> float:
    """Inches of height that ``names`` of columns need upright; 0 where they fit level, a word a line, under one of ``panels``."""
    level = len(names) * max(len(word) for name in names for word in name.split()) <= _LETTERS / panels
    return 0.0 if level else 0.065 * max(map(len, names))


def name_columns(axis: Axes, names: Sequence[str], panels: int) -> None:
    """Write ``names`` under columns of width one, level or upright; see ``name_room``."""
    places = np.arange(len(names)) + 0.5
    if name_room(names, panels):
        axis.set_xticks(places, names, rotation=90)
    else:
        axis.set_xticks(places, [name.replace(" ", "\n") for name in names])


def _cells(axis: Axes, title: str, columns: Sequence[str], layers: Sequence[int], panels: int) -> None:
    """Names around a grid that stands beside others, ``panels`` in all."""
    name_panel(axis, title)
    name_columns(axis, columns, panels)
    axis.set_yticks(np.arange(len(layers)) + 0.5, [f"layer {layer}" for layer in layers])
    axis.invert_yaxis()
    _bare(axis)


def _bare(axis: Axes) -> None:
    axis.grid(visible=False)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _experts(layers: Sequence[RoutingLayer], task: str) -> list[list[float]] | None:
    """(layers, experts), or None where a layer saw no token of ``task``."""
    shares = [layer.expert_share.get(task) for layer in layers]
    found = [list(share) for share in shares if share is not None]
    return found if len(found) == len(layers) else None


def _own_share(layers: Sequence[RoutingLayer], group: int, task: str) -> float:
    shares = [layer.group_share.get(task, ()) for layer in layers]
    return float(np.mean([share[group] for share in shares if len(share) > group] or [0.0]))


def _group_bars(axis: Axes, layers: Sequence[RoutingLayer]) -> None:
    """For each layer and task one bar of length one, cut by group."""
    places, names = [], []
    for position, layer in enumerate(layers):
        for number, task in enumerate(TASK_KEYS):
            height, left = position + 0.42 * number, 0.0
            places.append(height)
            names.append(f"layer {layer.layer}  {task}" if number == 0 else task)
            for group, share in enumerate(layer.group_share.get(task, ())):
                axis.barh(height, share, 0.36, left, color=_GROUPS[group % len(_GROUPS)], edgecolor=PAPER, linewidth=0.8)
                left += share
    axis.set_yticks(places, names)
    axis.set_xticks([0, 0.5, 1], ["0", "50%", "100%"])
    name_panel(axis, "Group (blue: understanding)")
    axis.invert_yaxis()
    _bare(axis)


def _alpha_bars(axis: Axes, layers: Sequence[RoutingLayer], alphas: Sequence[tuple[int, float]], look: VariantStyle) -> None:
    bars: Any = axis.barh([position for position, _ in alphas], [alpha for _, alpha in alphas], 0.55, color=look.color)
    axis.bar_label(bars, [decimal(alpha, 2) for _, alpha in alphas], padding=4, color=INK, fontsize=9)
    axis.axvline(0, color=MUTED, lw=0.8)
    axis.set_yticks(range(len(layers)), [f"layer {layer.layer}" for layer in layers])
    name_panel(axis, "Alpha (shared expert)")
    axis.margins(x=0.18)
    axis.invert_yaxis()
    _bare(axis)
