"""The page of ``unidecouple decouple --mode front``: what each remedy keeps and costs, and which one to take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unidecouple import __version__
from unidecouple.batch import Task
from unidecouple.delta.front import Remedy, suggest
from unidecouple.delta.guard_page import THEME, environment
from unidecouple.delta.pair import Pair
from unidecouple.figures.style import INK, WIDTH, Plot, canvas, legend, name_panel, to_svg
from unidecouple.figures.wording import TASK_NAMES
from unidecouple.files import write_json_atomic, write_text_atomic
from unidecouple.ownership import check_file

FRONT, PAGE = "front.json", "front.html"
_LOOKS = {
    "residual": ("#1f77c9", "o"),
    "bits": ("#009e73", "P"),
    "full": ("#c2569a", "^"),
    "interpolate": ("#e0903c", "s"),
    "revert": ("#8a63d2", "v"),
}


def write_front(pair: Pair, points: Sequence[Remedy], protect: Task, tolerance: float, data: str, output: Path) -> Path:
    """Write ``front.json`` and ``front.html`` to ``output``, and return the page's path.

    Raises:
        ValueError: a file of one of these names is there that this package did not write.
    """
    for name in (FRONT, PAGE):
        check_file(output / name)
    chosen, why = suggest(points, protect, tolerance)
    content: dict[str, Any] = {
        "generator": "unidecouple",
        "base": pair.base.name,
        "tuned": pair.tuned.name,
        "protect": protect.key,
        "tolerance": tolerance,
        "data": data,
        "base_bytes": sum(tensor.nbytes for tensor in pair.base.shapes.values()),
        "points": [point.to_json() for point in points],
        "suggested": {"name": chosen.name, "settings": chosen.settings, "why": why},
        "version": __version__,
    }
    output.mkdir(parents=True, exist_ok=True)
    write_json_atomic(output / FRONT, content)
    write_text_atomic(output / PAGE, render(content))
    return output / PAGE


def render(content: dict[str, Any]) -> str:
    """The page from what ``front.json`` holds."""
    other = next(task for task in TASK_NAMES if task != content["protect"])
    return (
        environment()
        .get_template("front.html.j2")
        .render(
            title=f"Remedies for {content['tuned']}",
            content=content,
            protected=TASK_NAMES[content["protect"]],
            other=TASK_NAMES[other],
            other_key=other,
            plots=[_by_size(content, other), _both(content, other)],
            theme=THEME,
            made=f"unidecouple {content['version']}",
        )
    )


def _by_size(content: dict[str, Any], other: str) -> Plot:
    figure, (axis,) = canvas(WIDTH, 3.8)
    for kind in ("residual", "bits", "full"):
        mine = [point for point in content["points"] if point["kind"] == kind]
        color, marker = _LOOKS[kind]
        across = [100 * point["extra_bytes"] / content["base_bytes"] for point in mine]
        axis.plot(across, [point["losses"][other] for point in mine], color=color, marker=marker, label=kind)
        for x, point in zip(across, mine, strict=True):
            axis.annotate(f" {point['name']}", (x, point["losses"][other]), fontsize=8, color=INK)
    axis.set_xscale("log")
    axis.set_xlabel("extra bytes of weights, % of the base's")
    axis.set_ylabel(f"{TASK_NAMES[other]}: held-out loss")
    legend(figure, [axis])
    caption = f"{TASK_NAMES[content['protect']].capitalize()} is the base's at every point, bit for bit. Left and down is better."
    return Plot(to_svg(figure, "size"), f"Held-out loss of {TASK_NAMES[other]} over the extra bytes of each form.", caption)


def _both(content: dict[str, Any], other: str) -> Plot:
    figure, (axis,) = canvas(WIDTH, 3.8)
    for kind, (color, marker) in _LOOKS.items():
        mine = [point for point in content["points"] if point["kind"] == kind]
        across = [point["losses"][content["protect"]] for point in mine]
        axis.plot(across, [point["losses"][other] for point in mine], marker, color=color, label=kind)
    name_panel(axis, "Both tasks")
    axis.set_xlabel(f"{TASK_NAMES[content['protect']]}: held-out loss")
    axis.set_ylabel(f"{TASK_NAMES[other]}: held-out loss")
    legend(figure, [axis])
    caption = "Interpolation and reverts have one set of weights, so one task pays for the other. Left and down is better."
    return Plot(to_svg(figure, "both"), "Both tasks' held-out losses under every remedy.", caption)
