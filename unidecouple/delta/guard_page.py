"""The page of ``unidecouple guard``: verdicts, what moved, and where the damage sits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import unidecouple.report
from unidecouple.figures.style import GRID, INK, MUTED, PAPER, TASK_COLORS, WIDTH, Plot, canvas, legend, name_panel, to_svg
from unidecouple.figures.wording import TASK_NAMES, counted

_PALETTE = ("#1f77c9", "#e0903c", "#009e73", "#c2569a", "#8a63d2", "#a0522d", "#5f9e3a", "#3b8686")
_RANKS = ("50%", "90%", "99%")


def environment() -> jinja2.Environment:
    """Templates of this package, over those of reports."""
    places = [Path(__file__).parent, Path(unidecouple.report.__file__).parent]
    made = Environment(
        loader=FileSystemLoader(places), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters["svg"] = Markup
    return made


THEME = {"ink": INK, "muted": MUTED, "grid": GRID, "paper": PAPER}


def render(content: dict[str, Any]) -> str:
    """The page from what ``guard.json`` holds."""
    moved = (("Relative change by layer", _by_layer(content)), ("Ranks of the change", _ranks(content)))
    damage = (("One group at a time", _reverts(content)), ("Greedily, one group after the other", _greedy(content)))
    return (
        environment()
        .get_template("guard.html.j2")
        .render(
            title=f"{content['tuned']} against {content['base']}",
            content=content,
            verdicts=_verdicts(content),
            moved=[(heading, plot) for heading, plot in moved if plot],
            damage=[(heading, plot) for heading, plot in damage if plot],
            task_names=TASK_NAMES,
            theme=THEME,
            made=f"unidecouple {content['versions']['unidecouple']}, torch {content['versions']['torch']}",
        )
    )


def _verdicts(content: dict[str, Any]) -> list[str]:
    """One sentence per task that was measured."""
    found = []
    for task, name in TASK_NAMES.items():
        rows = [row for row in content["tests"] if row["task"] == task]
        if rows:
            said = "; ".join(f"{row['name']} {row['before']:.3f} → {row['after']:.3f} ({row['verdict']})" for row in rows)
            found.append(f"{name.capitalize()}: {said}.")
    return found


def _by_layer(content: dict[str, Any]) -> Plot | None:
    rows = [row for row in content["weights"]["layers"] if row["relative"]]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    if not rows:
        return None
    figure, (axis,) = canvas(WIDTH, 3.4)
    for kind, color in zip(kinds, _PALETTE * len(kinds), strict=False):
        mine = sorted((row["layer"], row["relative"]) for row in rows if row["kind"] == kind)
        axis.plot(*zip(*mine, strict=True), marker="o", markersize=4, color=color, label=kind)
    axis.set_xlabel("decoder layer")
    axis.set_ylabel("norm of the change / norm of the weights")
    axis.set_ylim(bottom=0)
    legend(figure, [axis])
    caption = "How far each module kind of each decoder layer moved. Kinds outside the decoder are in the table."
    return Plot(to_svg(figure, "layers"), f"Relative change of {counted(len(kinds), 'module kind')} by decoder layer.", caption)


def _ranks(content: dict[str, Any]) -> Plot | None:
    rows = [row for row in content["weights"]["layers"] if any(rank is not None for rank in row["median_ranks"])]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    if not rows:
        return None
    figure, axes = canvas(WIDTH, 3.4, 1, len(kinds), sharey=True)
    for axis, kind in zip(axes, kinds, strict=True):
        mine = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["layer"])
        for at, (share, color) in enumerate(zip(_RANKS, _PALETTE, strict=False)):
            points = [(row["layer"], row["median_ranks"][at]) for row in mine if row["median_ranks"][at] is not None]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", markersize=4, color=color, label=f"{share} of the energy")
        name_panel(axis, kind)
        axis.set_xlabel("decoder layer")
    axes[0].set_ylabel("median rank")
    axes[0].set_ylim(bottom=0)
    legend(figure, axes)
    caption = "Singular values that hold so much of the change's energy (squared norm). Low ranks can be kept as a small residual."
    return Plot(to_svg(figure, "ranks"), f"Ranks of the change of {', '.join(kinds)} by decoder layer.", caption)


def _reverts(content: dict[str, Any]) -> Plot | None:
    rows = content["reverts"]
    if not rows:
        return None
    figure, (axis,) = canvas(WIDTH, 1.2 + 0.32 * len(rows))
    tasks = list(rows[0]["gains"])
    for number, task in enumerate(tasks):
        gains = [row["gains"][task] for row in rows]
        places = [at + (number - (len(tasks) - 1) / 2) * 0.36 for at in range(len(rows))]
        values = [one["gain"] for one in gains]
        ends = [[one["gain"] - one["low"] for one in gains], [one["high"] - one["gain"] for one in gains]]
        axis.barh(places, values, 0.34, xerr=ends, color=TASK_COLORS[task], ecolor=MUTED, label=TASK_NAMES[task])
    axis.set_yticks(range(len(rows)), [row["groups"][0] for row in rows])
    axis.invert_yaxis()
    axis.axvline(0, color=MUTED, linewidth=0.8)
    axis.set_xlabel("gain in held-out loss when this group is reverted (nats per token, 95% interval)")
    legend(figure, [axis])
    caption = "Right of zero: reverting this group alone repairs the task. Left of zero: the task needs the change."
    return Plot(to_svg(figure, "reverts"), f"Gain of both tasks when one of {len(rows)} module groups is reverted.", caption)


def _greedy(content: dict[str, Any]) -> Plot | None:
    path = content["greedy"]
    tasks = [task for task in TASK_NAMES if path and task in path[0]]
    if len(tasks) < 2:
        return None
    figure, (axis,) = canvas(WIDTH, 4.2)
    across, up = ([step[task] for step in path] for task in tasks)
    axis.plot(across, up, marker="o", color=_PALETTE[0])
    for step, x, y in zip(path, across, up, strict=True):
        axis.annotate(f" {step['groups'][-1] if step['groups'] else 'tuned'}", (x, y), fontsize=8, color=INK)
    axis.set_xlabel(f"{TASK_NAMES[tasks[0]]}: held-out loss")
    axis.set_ylabel(f"{TASK_NAMES[tasks[1]]}: held-out loss")
    caption = "Left and down is better. Each point reverts one group more, named beside it; the last one is the base."
    return Plot(to_svg(figure, "greedy"), "Both tasks' losses as module groups are reverted one after the other.", caption)
