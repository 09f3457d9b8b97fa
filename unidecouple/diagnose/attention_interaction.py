"""How much each layer looks at the other modality, for both tasks, and whether the tasks' curves over depth oppose each other.

The paper finds them negatively correlated at every degree of decoupling: layers that draw by the prompt are not those that answer
by the image (AIA, arXiv 2511.22663, section 3.1 and figure 1). The quantity is ``models/interaction.py``'s, as the loss has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from unidecouple.batch import TASK_KEYS, Task
from unidecouple.diagnose.probe import BATCH, BatchOf, Drawn, Probe, ProbeInput, ProbeResult, Skipped
from unidecouple.figures.estimates import estimate
from unidecouple.figures.style import TASK_COLORS, WIDTH, Plot, canvas, legend, name_panel, to_svg
from unidecouple.figures.wording import TASK_NAMES, counted, decimal
from unidecouple.source import Progress

if TYPE_CHECKING:
    from unidecouple.models.base import UnifiedModel

_MARKERS = {"mmu": "o", "t2i": "s"}
_LOOKED_AT = {"mmu": "answers at the image", "t2i": "generated tokens at the prompt"}


@dataclass(frozen=True)
class LayerInteraction:
    """Interaction intensity of one layer and task over several batches.

    Attributes:
        layer: decoder layer.
        task: its key; "mmu" is what answers give to the image, "t2i" what generated tokens give to the prompt.
        intensity: share of attention, 0 to 1: mean over batches of the mean over a batch's samples.
        error: standard error of that mean over batches.
    """

    layer: int
    task: str
    intensity: float
    error: float


@torch.no_grad()
def attention_interaction(
    model: UnifiedModel, batch_of: BatchOf, tasks: Sequence[Task] = tuple(Task), batches: int = 8
) -> list[LayerInteraction]:
    """Curves of ``model`` on ``batches`` batches of each of ``tasks``, layer by layer.

    Samples with a dropped prompt, or without an image or an answer, are left out, and so is a task that has a sample in fewer than
    two batches (conversations without images, say).
    """
    rows = []
    for task in tasks:
        means = []
        for number in range(batches):
            found = model(batch=batch_of(task, number), interaction=True).interaction
            intensity = torch.cat([one.intensity[:, one.task == task] for one in found], dim=1)
            means += [intensity.mean(1)] if intensity.shape[1] else []
        if len(means) < 2:
            continue
        curve = torch.stack(means).double()
        error = curve.std(0) / len(means) ** 0.5
        rows += [
            LayerInteraction(layer, task.key, float(mean), float(spread))
            for layer, (mean, spread) in enumerate(zip(curve.mean(0), error, strict=True))
        ]
    return rows


def depth_correlation(rows: Sequence[LayerInteraction]) -> float | None:
    """Pearson's correlation of the two tasks' curves over layers; None of fewer than three layers, or where one lacks or is flat.

    Of few layers it says little: of six, unrelated curves pass 0.81 on either side one time in twenty.
    """
    mmu, t2i = ([row.intensity for row in rows if row.task == task.key] for task in Task)
    if min(len(mmu), len(t2i)) < 3 or min(max(curve) - min(curve) for curve in (mmu, t2i)) < 1e-9:
        return None
    return float(torch.corrcoef(torch.tensor([mmu, t2i], dtype=torch.float64))[0, 1])


def measure(probe_input: ProbeInput, progress: Progress) -> ProbeResult:
    """``attention_interaction``: {"step", "correlation", "rows"}."""
    rows = attention_interaction(
        probe_input.model, lambda task, number: probe_input.batch(task, BATCH, number), probe_input.tasks, 2 * probe_input.batches
    )
    if not rows:
        return Skipped("no sample shows both an image and words about it")
    return {"step": probe_input.step, "correlation": depth_correlation(rows), "rows": [asdict(row) for row in rows]}


def draw(measured: Any) -> Drawn:
    """Curves over layers."""
    return [("", interaction_figure("interaction", "Interaction", [interaction_of(measured)]))]


@dataclass(frozen=True)
class InteractionCurves:
    """A curve over layers for each task key measured, after ``step`` steps; how the two correlate, None if that says nothing."""

    step: int
    curves: Mapping[str, tuple[LayerInteraction, ...]]
    correlation: float | None


def interaction_of(content: Mapping[str, Any]) -> InteractionCurves:
    """The content of ``interaction.json`` as typed values."""
    curves: dict[str, tuple[LayerInteraction, ...]] = {}
    for row in content["rows"]:
        curves[row["task"]] = (*curves.get(row["task"], ()), LayerInteraction(**row))
    return InteractionCurves(content["step"], curves, content["correlation"])


def interaction_figure(name: str, title: str, seeds: Sequence[InteractionCurves]) -> Plot | None:
    """Intensity by layer and task, mean over ``seeds``, in a band of 95%: over seeds, or of one seed over batches.

    None if nothing was measured. Seeds must have the same layers.
    """
    curves = {task: [seed.curves[task] for seed in seeds if task in seed.curves] for task in TASK_KEYS}
    shown = [task for task, found in curves.items() if found]
    if not shown:
        return None
    figure, axes = canvas(WIDTH, 3.4)
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


def _caption(seeds: Sequence[InteractionCurves]) -> str:
    found = [seed.correlation for seed in seeds if seed.correlation is not None]
    if not found:
        return "There are not two curves to compare."
    mean, of = decimal(float(np.mean(found)), 2, plus=True), f" (mean of {counted(len(found), 'seed')})" if len(found) > 1 else ""
    return f"The correlation of the two tasks' curves over layers is {mean}{of}; below zero, each looks where the other does not."


PROBE: Final = Probe(
    "interaction",
    "Which layers attend to the other modality?",
    measure,
    draw,
    "The share of attention that answers give to the image, and generated tokens to their prompt, by layer.",
    "Curves that oppose each other in layers that both tasks share: where one task wants its eyes on the other modality, the "
    "other does not. The AIA loss moves them towards those of models of one task.",
    "AIA, arXiv 2511.22663",
)
