"""Who gained and who lost from what it was trained on: change from the start, and from the run on that task alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from unidecouple.batch import Task
from unidecouple.diagnose.early_warning import SERVES
from unidecouple.report.results import DENSE_MMU, DENSE_T2I, MAIN, START, Estimate, Measure, Results, difference
from unidecouple.report.style import MUTED, Plot, canvas, name_panel, to_svg
from unidecouple.report.wording import DASH, signed, spread

ALONE = {Task.MMU: DENSE_MMU, Task.T2I: DENSE_T2I}
"""The variant that trains a task alone."""
WIDTH = 11.6
_DARK, _LIGHT = "#16181c", "#ffffff"
_LEAST_SCALE = 0.05  # differences of scores below it are not blown up to full colour


@dataclass(frozen=True)
class Cell:
    """One variant's score of one benchmark beside two references; None where there is nothing to compare with.

    Attributes:
        variant, measure: which.
        change: score minus the start's, before training: negative is forgetting.
        transfer: score minus that of the run trained on the benchmark's task alone, paired by seed, of seeds whose two runs had
            equally many steps: positive or negative transfer from the other task.
    """

    variant: str
    measure: Measure
    change: Estimate | None
    transfer: Estimate | None


def transfer_matrix(results: Results, scenario: str) -> list[Cell]:
    """Every trained variant by every main score that it has."""
    cells = []
    for variant in results.trained(scenario):
        for measure in MAIN:
            rows = results.final_rows(scenario, variant, measure)
            if not rows:
                continue
            alone = ALONE[SERVES[measure.benchmark]]
            theirs = results.final_rows(scenario, alone, measure) if variant != alone else {}
            matched = [seed for seed in rows if seed in theirs and theirs[seed].step == rows[seed].step]
            transfer = difference({seed: rows[seed].value for seed in matched}, {seed: theirs[seed].value for seed in matched})
            cells.append(Cell(variant, measure, results.change(scenario, variant, measure), transfer))
    return cells


def transfer_map(name: str, scenario: str, cells: list[Cell], title: Callable[[str], str]) -> Plot | None:
    """The matrix as two maps of points; None if nothing can be compared."""
    panels = {
        f"Minus the {title(START)}, before training": {(c.variant, c.measure): c.change for c in cells if c.change},
        "Minus the run on that task alone": {(c.variant, c.measure): c.transfer for c in cells if c.transfer},
    }
    shown = {panel: found for panel, found in panels.items() if found}
    if not shown:
        return None
    variants = list(dict.fromkeys(cell.variant for cell in cells))
    measures = [measure for measure in MAIN if any(cell.measure == measure for cell in cells)]
    limit = max([_LEAST_SCALE, *(abs(gap.mean) for found in shown.values() for gap in found.values())])
    figure, axes = canvas(WIDTH, 1.1 + 0.36 * len(variants), 1, len(shown), sharey=True)
    for axis, (panel, found) in zip(axes, shown.items(), strict=True):
        grid = np.full((len(variants), len(measures)), np.nan)
        for (variant, measure), gap in found.items():
            grid[variants.index(variant), measures.index(measure)] = gap.mean
        axis.pcolormesh(grid, cmap="RdBu", vmin=-limit, vmax=limit)
        for row, variant in enumerate(variants):
            for column, measure in enumerate(measures):
                told = found.get((variant, measure))
                strong = told is not None and abs(told.mean) > 0.6 * limit
                text = DASH if told is None else signed(told.mean) + spread(told)
                color = MUTED if told is None else _LIGHT if strong else _DARK
                axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8.5, color=color)
        _label(axis, panel, [measure.label for measure in measures])
    axes[0].set_yticks(np.arange(len(variants)) + 0.5, [title(variant) for variant in variants])
    axes[0].invert_yaxis()
    caption = _told(cells, title)
    return Plot(to_svg(figure, name), f"Transfer and forgetting in {scenario}. {caption}", caption)


def _told(cells: list[Cell], title: Callable[[str], str]) -> str:
    """Which losses the seeds can show, and what could not be asked."""
    gaps = {
        "Forgetting": ([(cell, cell.change) for cell in cells if cell.change], "No start was measured."),
        "Negative transfer": ([(cell, cell.transfer) for cell in cells if cell.transfer], "No task was trained alone for as long."),
    }
    told = ["In points, mean ± 95% interval over seeds."]
    for name, (found, missing) in gaps.items():
        lost = "; ".join(f"{cell.measure.label} of {title(cell.variant)}" for cell, gap in found if _falls(gap))
        if not found:
            told.append(missing)
        elif all(gap.count == 1 for _, gap in found):
            told.append(f"{name}: one seed has no interval, so any of it may be chance.")
        else:
            told.append(f"{name} that the seeds can show: {lost or 'none'}.")
    return " ".join(told)


def _falls(gap: Estimate) -> bool:
    return gap.is_shown and gap.mean < 0


def _label(axis: Axes, title: str, columns: list[str]) -> None:
    name_panel(axis, title)
    axis.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axis.grid(visible=False)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
