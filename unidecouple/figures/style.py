"""How figures look: one colour and marker per variant, and SVG that follows the page's light or dark theme.

matplotlib is imported where a figure is drawn: what is measured here is measured in training, too, which draws nothing.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unidecouple.batch import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1f2329", "#69707a", "#dfe3e8", "#fdfefe"
"""Colours of text, axes, grid and page. In the SVG they become CSS variables, so the theme of the page sets them."""

TASK_COLORS = {Task.MMU.key: "#4477aa", Task.T2I.key: "#e0903c"}
"""Where lines or bars are of tasks, not of variants: understanding blue, generation orange."""

WIDTH = 11.6
"""Of a figure across the page, in inches."""
DARK, LIGHT = "#16181c", "#ffffff"
"""Text on coloured cells, whatever the page's theme."""

_THEME = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"}
_BY_ROLE = {
    "start": ("#7a828c", "D"),
    Task.T2I.key: ("#d55e00", "s"),
    Task.MMU.key: ("#b8860b", "v"),
    "control": ("#c2569a", "^"),
    "focus": ("#1f77c9", "o"),
}
"""Looks of the variants with a role, see ``Results.role``."""
_OTHERS = (
    ("#009e73", "P"),
    ("#56a5d8", "X"),
    ("#8a63d2", "<"),
    ("#a0522d", ">"),
    ("#5f9e3a", "h"),
    ("#c9a227", "d"),
    ("#3b8686", "p"),
    ("#e07b91", "8"),
)
_FAMILY = re.compile(r"font-family: [^;\"]*")
_SIZES = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9.5,
}
_RC: Any = _SIZES | {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the reader's own font
    "svg.hashsalt": "unidecouple",  # equal figures give equal files
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class VariantStyle:
    """Colour (hex), matplotlib marker, title and role of a variant; markers tell variants apart without colour."""

    color: str
    marker: str
    title: str
    role: str = ""


@dataclass(frozen=True)
class Plot:
    """A figure of the page: ``svg`` markup, ``alt`` for those who cannot see it, and a ``caption`` that says how to read it."""

    svg: str
    alt: str
    caption: str


def variant_styles(
    names: Sequence[str],
    title: Callable[[str], str],
    group: Callable[[str], int] = lambda name: 0,
    role: Callable[[str], str] = lambda name: "",
) -> dict[str, VariantStyle]:
    """VariantStyle of every variant in ``names``: by its ``role`` where it has one, else by its place within its ``group``.

    Groups are drawn apart, so each begins with the first colour. After eight, colours come again with other markers.
    """
    seen: Counter[int] = Counter()
    found: dict[str, VariantStyle] = {}
    for name in names:
        if role(name):
            found[name] = VariantStyle(*_BY_ROLE[role(name)], title(name), role(name))
            continue
        turn, place = divmod(seen[group(name)], len(_OTHERS))
        seen[group(name)] += 1
        found[name] = VariantStyle(_OTHERS[place][0], _OTHERS[(place + turn + group(name)) % len(_OTHERS)][1], title(name))
    return found


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **subplots: Any) -> tuple[Figure, list[Axes]]:
    """A figure of ``width`` x ``height`` inches and its axes, row by row."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **subplots)
    return figure, list(axes.flat)


def name_panel(axis: Axes, text: str) -> None:
    """Name a panel, at its left."""
    axis.set_title(text, loc="left", weight="bold", color=INK, fontsize=10)


def to_svg(figure: Figure, name: str) -> str:
    """``figure`` as SVG to stand in HTML: themed, sized by the page, its ids made the page's own by ``name``."""
    import matplotlib as mpl

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context(_RC):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = _FAMILY.sub("font-family: inherit", svg)
    return _themed(svg, _THEME)


def _themed(svg: str, variables: Mapping[str, str]) -> str:
    for color, variable in variables.items():
        svg = svg.replace(f": {color}", f": var({variable}, {color})")
    return svg


def legend(figure: Figure, axes: Sequence[Axes], columns: int = 6) -> None:
    """One legend above all ``axes``; what several of them show is named once."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(str(label), handle)
    if handles:
        import matplotlib as mpl

        with mpl.rc_context(_RC):
            figure.legend(
                handles.values(), handles.keys(), loc="outside upper left", ncols=columns, handlelength=1.8, columnspacing=1.6
            )
