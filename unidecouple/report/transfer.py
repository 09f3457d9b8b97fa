"""Who gained and who lost from what it was trained on: change from the start, and from the run on that task alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from unidecouple.eval.benchmark import Metric
from unidecouple.figures.estimates import SeedEstimate, difference
from unidecouple.figures.grids import bare, draw_grid
from unidecouple.figures.style import WIDTH, Plot, canvas, name_panel, to_svg
from unidecouple.figures.wording import DASH, listed, signed, spread, unit_words
from unidecouple.report.results import START, Results

_LEAST_SCALE = 0.05  # differences of scores below it are not blown up to full colour


@dataclass(frozen=True)
class TransferCell:
    """One variant's score of one benchmark beside two references; None where there is nothing to compare with.

    Attributes:
        variant, metric: which.
        change: score minus the start's, before training: a loss is forgetting.
        transfer: score minus that of the run trained on the benchmark's task alone, paired by seed, of seeds whose two runs had
            equally many steps: positive or negative transfer from the other task.
    """

    variant: str
    metric: Metric
    change: SeedEstimate | None
    transfer: SeedEstimate | None


def transfer_matrix(results: Results, scenario: str) -> list[TransferCell]:
    """Every trained variant by every metric shown that it has."""
    cells = []
    for variant in results.trained(scenario):
        for metric in results.metrics:
            rows = results.final_rows(scenario, variant, metric)
            if not rows:
                continue
            alone = results.single_task(metric.task)
            theirs = results.final_rows(scenario, alone, metric) if alone is not None and alone != variant else {}
            matched = [seed for seed in rows if seed in theirs and theirs[seed].step == rows[seed].step]
            transfer = difference({seed: rows[seed].value for seed in matched}, {seed: theirs[seed].value for seed in matched})
            cells.append(TransferCell(variant, metric, results.change(scenario, variant, metric), transfer))
    return cells


def transfer_map(name: str, scenario: str, cells: list[TransferCell], title: Callable[[str], str]) -> Plot | None:
    """The matrix as two maps of differences; None if nothing can be compared.

    Colours run to the largest difference of each unit, and show what was gained or lost whatever a metric's direction.
    """
    panels = {
        f"Minus the {title(START)}, before training": {(c.variant, c.metric): c.change for c in cells if c.change},
        "Minus the run on that task alone": {(c.variant, c.metric): c.transfer for c in cells if c.transfer},
    }
    shown = {panel: found for panel, found in panels.items() if found}
    if not shown:
        return None
    variants = list(dict.fromkeys(cell.variant for cell in cells))
    metrics = list(dict.fromkeys(cell.metric for cell in sorted(cells, key=lambda cell: cell.metric.rank)))
    limits: dict[str, float] = {}
    for (_, metric), gap in (item for found in shown.values() for item in found.items()):
        limits[metric.unit] = max(limits.get(metric.unit, _LEAST_SCALE), abs(gap.mean))
    figure, axes = canvas(WIDTH, 1.1 + 0.36 * len(variants), 1, len(shown), sharey=True)
    for axis, (panel, found) in zip(axes, shown.items(), strict=True):
        grid = np.full((len(variants), len(metrics)), np.nan)
        for (variant, metric), gap in found.items():
            grid[variants.index(variant), metrics.index(metric)] = metric.gain(gap.mean) / limits[metric.unit]
        texts = {
            (row, column): _text(found.get((variant, metric)), metric)
            for row, variant in enumerate(variants)
            for column, metric in enumerate(metrics)
        }
        draw_grid(axis, grid, 1, texts=texts)
        name_panel(axis, panel)
        axis.set_xticks(np.arange(len(metrics)) + 0.5, [_column(metric) for metric in metrics])
        bare(axis)
    axes[0].set_yticks(np.arange(len(variants)) + 0.5, [title(variant) for variant in variants])
    axes[0].invert_yaxis()
    caption = _caption(cells, title)
    return Plot(to_svg(figure, name), f"Transfer and forgetting in {scenario}. {caption}", caption)


def _column(metric: Metric) -> str:
    return f"{metric.title},\n{unit_words(metric.unit)}" if metric.unit == "nats" else metric.title


def _text(gap: SeedEstimate | None, metric: Metric) -> str:
    return DASH if gap is None else signed(gap.mean, metric.unit) + spread(gap, metric.unit)


def _caption(cells: list[TransferCell], title: Callable[[str], str]) -> str:
    """Which losses the seeds can show, and what could not be asked."""
    gaps = {
        "Forgetting": ([(cell, cell.change) for cell in cells if cell.change], "No start was measured."),
        "Negative transfer": ([(cell, cell.transfer) for cell in cells if cell.transfer], "No task was trained alone for as long."),
    }
    units = listed(list(dict.fromkeys(unit_words(cell.metric.unit) for cell in cells)))
    sentences = [f"In {units}, mean ± 95% interval over seeds."]
    for name, (found, missing) in gaps.items():
        lost = "; ".join(f"{cell.metric.title} of {title(cell.variant)}" for cell, gap in found if _falls(cell.metric, gap))
        if not found:
            sentences.append(missing)
        elif all(gap.count == 1 for _, gap in found):
            sentences.append(f"{name}: one seed has no interval, so any of it may be chance.")
        else:
            sentences.append(f"{name} that the seeds can show: {lost or 'none'}.")
    return " ".join(sentences)


def _falls(metric: Metric, gap: SeedEstimate) -> bool:
    return gap.is_shown and metric.gain(gap.mean) < 0
