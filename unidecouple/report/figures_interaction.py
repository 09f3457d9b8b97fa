"""Figure of attention between the modalities: one curve a task over the layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unidecouple.batch import TASK_KEYS
from unidecouple.report.estimates import estimate
from unidecouple.report.logs import Interaction
from unidecouple.report.style import TASK_COLORS, Plot, canvas, legend, name_panel, to_svg
from unidecouple.report.wording import TASK_NAMES, counted, decimal

WIDTH, HEIGHT = 11.6, 3.4
_MARKERS = {"mmu": "o", "t2i": "s"}
_LOOKED_AT = {"mmu": "answers at the picture", "t2i": "drawn tokens at the prompt"}


def interaction_figure(name: str, title: str, seeds: Sequence[Interaction]) -> Plot | None:
    """Intensity by layer and task, mean over ``seeds``, in a band of 95%: over seeds, or of one seed over batches.

    None if nothing was measured. Seeds must have the same layers.
    """
    curves = {task: [seed.curves[task] for seed in seeds if task in seed.curves] for task in TASK_KEYS}
    shown = [task for task, found in curves.items() if found]
    if not shown:
        return None
    figure, axes = canvas(WIDTH, HEIGHT)
    axis = axes[0]
    for task in shown:
        found = curves[task]
        middle = np.mean([[point.intensity for point in curve] for curve in found], axis=0)
        half = _half_widths([[point.intensity for point in curve] for curve in found], [point.error for point in found[0]])
        color, marker = TASK_COLORS[task], _MARKERS[task]
        layers = np.arange(len(middle))
        axis.plot(layers, middle, color=color, marker=marker, markersize=5, label=f"{TASK_NAMES[task]}: {_LOOKED_AT[task]}")
        axis.fill_between(layers, middle - half, middle + half, color=color, alpha=0.18, lw=0)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("layer")
    axis.set_xticks(np.arange(max(len(curves[task][0]) for task in shown)))
    name_panel(axis, "Share of attention given to the other modality")
    legend(figure, axes, columns=2)
    caption = _caption(seeds)
    return Plot(to_svg(figure, name), f"{title}: share of attention given to the other modality, by layer. {caption}", caption)


def _half_widths(values: Sequence[Sequence[float]], errors: Sequence[float]) -> np.ndarray:
    """Half of the 95% interval at each layer: over seeds, or from one seed's standard errors over batches."""
    if len(values) == 1:
        return 1.96 * np.array(errors)
    return np.array([estimate(at).half_width or 0.0 for at in zip(*values, strict=True)])


def _caption(seeds: Sequence[Interaction]) -> str:
    found = [seed.correlation for seed in seeds if seed.correlation is not None]
    if not found:
        return "There are not two curves to compare."
    mean, of = decimal(float(np.mean(found)), 2, plus=True), f" (mean of {counted(len(found), 'seed')})" if len(found) > 1 else ""
    return f"The correlation of the two tasks' curves over layers is {mean}{of}; below zero, each looks where the other does not."
