"""Routing over training steps: how sure the routers are, how evenly experts are used, where each task's tokens go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from unidecouple.batch import TASK_KEYS
from unidecouple.diagnose.probe import Drawn, Probe, ProbeInput, ProbeResult, Skipped
from unidecouple.diagnose.routing import RoutingLayer, routing_of
from unidecouple.diagnose.routing_alarm import GATHERED, UNIFORM
from unidecouple.figures.estimates import Curve
from unidecouple.figures.style import MUTED, TASK_COLORS, WIDTH, Plot, canvas, legend, name_panel, to_svg
from unidecouple.figures.wording import TASK_NAMES, counted
from unidecouple.source import Progress

LayerMetric = Callable[[RoutingLayer, str], float | None]


def measure(probe_input: ProbeInput, progress: Progress) -> ProbeResult:
    """What training logged: {"records"}."""
    records = list(probe_input.routing_log)
    return (
        {"records": records}
        if records
        else Skipped("there is no routing.jsonl beside it: only runs of models with experts write one")
    )


def draw(measured: Any) -> Drawn:
    """Curves over steps."""
    return [("", routing_history("history", "Training", measured["records"]))]


def routing_history(name: str, title: str, records: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Curves over steps from the records of ``routing.jsonl``, thin by layer and bold for their mean. None of fewer than two."""
    if len(records) < 2:
        return None
    found = [(int(record["step"]), routing_of(record)) for record in records]
    groups = max(len(share) for layer in found[-1][1] for share in layer.group_share.values())
    panels: dict[str, tuple[LayerMetric, float | None]] = {
        "Router entropy per token": (lambda layer, task: layer.token_entropy.get(task), UNIFORM),
        "Load-balance entropy": (lambda layer, task: layer.load_entropy.get(task), GATHERED),
    }
    if groups > 1:
        panels["Tokens in their own task's group"] = (_own_group, None)
    figure, axes = canvas(WIDTH, 3.1, 1, len(panels) + 1)
    for axis, (panel, (value, mark)) in zip(axes, panels.items(), strict=False):
        for task in TASK_KEYS:
            curves = _curves(found, value, task)
            for curve in curves:
                axis.plot([*curve], [*curve.values()], color=TASK_COLORS[task], lw=0.8, alpha=0.4)
            mean = _mean(curves)
            if mean:
                axis.plot([*mean], [*mean.values()], color=TASK_COLORS[task], label=f"{TASK_NAMES[task]}, mean of layers")
        if mark is not None:
            axis.axhline(mark, color=MUTED, lw=1, ls=":")
        axis.set_ylim(-0.03, 1.03)
        name_panel(axis, panel)
        axis.set_xlabel("step")
    dead = [sum(len(layer.dead) for layer in layers) for _, layers in found]
    axes[-1].step([step for step, _ in found], dead, where="post", color=MUTED)
    axes[-1].set_ylim(-0.1, max(1, *dead) + 0.2)
    axes[-1].locator_params(axis="y", integer=True)
    name_panel(axes[-1], "Dead experts, all layers")
    axes[-1].set_xlabel("step")
    legend(figure, axes)
    caption = (
        f"From step {found[0][0]} to {found[-1][0]}; at the end {counted(dead[-1], 'dead expert')}. Entropies are shares of their "
        "maximum. The dotted lines are the alarm's limits: router entropy that rises above the upper one after it was low, "
        "load-balance entropy that falls below the lower one."
    )
    return Plot(to_svg(figure, name), f"{title}: routing over steps. {caption}", caption)


def _own_group(layer: RoutingLayer, task: str) -> float | None:
    share, own = layer.group_share.get(task, ()), TASK_KEYS.index(task)
    return share[own] if own < len(share) else None


def _curves(found: Sequence[tuple[int, Sequence[RoutingLayer]]], value: LayerMetric, task: str) -> list[Curve]:
    """One curve per layer, of the steps that have a value."""
    curves: dict[int, Curve] = {}
    for step, layers in found:
        for layer in layers:
            measured = value(layer, task)
            if measured is not None:
                curves.setdefault(layer.layer, {})[step] = measured
    return list(curves.values())


def _mean(curves: Sequence[Curve]) -> Curve:
    steps = sorted({step for curve in curves for step in curve})
    return {step: float(np.mean([curve[step] for curve in curves if step in curve])) for step in steps}


PROBE: Final = Probe(
    "routing_history",
    "How did routing change during training?",
    measure,
    draw,
    "Thin lines are layers. Router entropy is that of a router's probabilities on one token, load-balance entropy that of its "
    "choices over a task's tokens; 1 is the maximum.",
    "Router entropy that was low and rises towards 1: the routers lose what the experts had specialised in. "
    "Load-balance entropy that falls to 0: one "
    "expert takes all. Dead experts that grow in number.",
    "Symbiotic-MoE, arXiv 2604.07753",
)
