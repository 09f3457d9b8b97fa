"""Maps of coloured cells with their values: layers down, names across."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from unidecouple.figures.style import DARK, LIGHT, MUTED, name_panel
from unidecouple.figures.wording import decimal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LETTERS = 150  # of columns' names, from one side of the page to the other


def draw_grid(
    axis: Axes, grid: np.ndarray, limit: float, colors: str = "RdBu", texts: Mapping[tuple[int, int], str] | None = None
) -> None:
    """Draw (rows, columns) cells coloured from ``-limit`` to ``limit`` with their ``texts``, else their values.

    Sequential "Blues" run from 0. NaN is an empty cell.
    """
    axis.pcolormesh(grid, cmap=colors, vmin=0 if colors == "Blues" else -limit, vmax=limit)
    for place, value in np.ndenumerate(grid):
        missing = np.isnan(value)
        text = "" if missing and texts is None else decimal(value, 2) if texts is None else texts.get(place, "")
        color = MUTED if missing else LIGHT if abs(value) > 0.6 * limit else DARK
        axis.text(place[1] + 0.5, place[0] + 0.5, text, ha="center", va="center", fontsize=8, color=color)


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


def label_grid(axis: Axes, title: str, columns: Sequence[str], rows: Sequence[str], panels: int) -> None:
    """Write names around a grid that stands beside others, ``panels`` in all."""
    name_panel(axis, title)
    name_columns(axis, columns, panels)
    axis.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axis.invert_yaxis()
    bare(axis)


def bare(axis: Axes) -> None:
    """Leave out grid lines, ticks and frame."""
    axis.grid(visible=False)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
