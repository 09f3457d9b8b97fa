"""Figures of what happens inside: gradient conflict with its noise floor, and where the routers send tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unidecouple.batch import TASK_KEYS
from unidecouple.report.logs import Conflict, RoutingLayer
from unidecouple.report.results import Estimate, estimate
from unidecouple.report.style import INK, MUTED, Look, Plot, canvas, to_svg
from unidecouple.report.wording import TASK_NAMES, counted, variant_name

WIDTH = 11.6
_DARK, _LIGHT = "#16181c", "#ffffff"  # on coloured cells, whatever the page's theme
_GROUPS = ("#4c78a8", "#e08a3c", "#72a07a", "#a07aa8")
_LARGE_ALPHA = 1.0


@dataclass(frozen=True)
class Cell:
    """One weight matrix over seeds: mean cosine of the tasks' gradients, mean floor, and whether they are told apart."""

    layer: int
    part: str
    cosine: float
    floor: float
    norm_ratio: float
    differs: bool


def conflict_cells(seeds: Sequence[Conflict]) -> list[Cell]:
    """Cells of one variant from its ``seeds`` (at least one), for the matrices that all of them measured.

    A cell differs from its floor if the 95% interval of ``cosine - floor`` over seeds excludes zero; of one seed, if they lie
    more than twice their joint spread over batches apart, which is a stricter test.
    """
    by_place = [{(cell.layer, cell.part): cell for cell in conflict.cells} for conflict in seeds]
    places = [place for place in by_place[0] if all(place in cells for cells in by_place)]
    out = []
    for place in places:
        cells = [found[place] for found in by_place]
        gap = estimate([cell.cosine - cell.floor for cell in cells])
        if gap.count == 1:
            gap = Estimate(gap.mean, 2 * float(np.hypot(cells[0].cosine_std, cells[0].floor_std)), 1)
        cosine, floor, ratio = (float(np.mean([getattr(cell, name) for cell in cells])) for name in ("cosine", "floor", "norm_ratio"))
        out.append(Cell(*place, cosine, floor, ratio, gap.is_shown))
    return out


def conflict_map(name: str, title: str, seeds: Sequence[Conflict]) -> Plot | None:
    """Cosine by layer and weight type, its floor beside it, and the difference; told-apart cells are marked."""
    cells = conflict_cells(seeds)
    if not cells:
        return None
    parts = list(dict.fromkeys(cell.part for cell in cells))
    layers = sorted({cell.layer for cell in cells})
    panels = {
        "Between the tasks": lambda cell: cell.cosine,
        "Noise floor: within one task": lambda cell: cell.floor,
        "Tasks minus floor  (• told apart)": lambda cell: cell.cosine - cell.floor,
    }
    figure, axes = canvas(WIDTH, 1.25 + 0.34 * len(layers), 1, 3)
    grids = [_grid(cells, layers, parts, value) for value in panels.values()]
    limit = max(0.05, float(np.nanmax(np.abs(grids))))
    marked = {(layers.index(cell.layer), parts.index(cell.part)) for cell in cells if cell.differs}
    for number, (axis, panel, grid) in enumerate(zip(axes, panels, grids, strict=True)):
        mesh = axis.pcolormesh(grid, cmap="RdBu", vmin=-limit, vmax=limit, edgecolors="face", linewidth=0.3)
        _annotate(axis, grid, limit, marked if number == 2 else set())
        _cell_axes(axis, panel, parts, layers)
        if number == 2:
            _colorbar(figure, axis, mesh)
    low = sum(cell.differs and cell.cosine < cell.floor for cell in cells)
    mean, floor = (float(np.mean([value(cell) for cell in cells])) for value in list(panels.values())[:2])
    alt = f"{title}: cosine of the two tasks' gradients by layer and weight type. Mean {mean:+.3f}, noise floor {floor:+.3f}."
    rule = "95% interval over seeds" if len(seeds) > 1 else "one seed: more than twice the spread over batches"
    caption = (
        f"Mean cosine {mean:+.3f} between the tasks, {floor:+.3f} within one task; in {low} of {counted(len(cells), 'matrix')[:-1]}"
        f"{'' if len(cells) == 1 else 'ces'} the tasks' cosine lies below its floor by more than noise ({rule})."
    )
    return Plot(to_svg(figure, name), alt, caption)
