"""What a part of a mixture is worth: the held-out loss of each task without it, minus the loss with it.

A part is taken away by changing weights, or by sending a group's tokens to another group's router, for the length of a measurement;
then all is put back bit for bit: no hook, no flag in the model, no second copy of it. Ours; the paper (arXiv 2506.03591) removes
parts before training, which asks another question: there the rest can learn to do without.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from unidecouple.batch import TASK_KEYS, JointBatch, Task
from unidecouple.diagnose.probe import BATCH, Drawn, Probe, ProbeInput, ProbeResult, Skipped
from unidecouple.figures.grids import draw_grid, label_grid, name_room
from unidecouple.figures.style import INK, WIDTH, Plot, canvas, to_svg
from unidecouple.figures.wording import TASK_NAMES, decimal, listed
from unidecouple.models.base import UnifiedModel
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.models.groups import GROUP_NAMES
from unidecouple.models.moe import MixtureOfExperts
from unidecouple.models.untied import UniRMSNorm, UntiedLinear
from unidecouple.source import Progress

Change = Callable[[], contextlib.AbstractContextManager[None]]
"""Changes a model on entry, and puts it back on exit."""
Held = Mapping[Task, Sequence[JointBatch]]
"""Held-out batches of each task."""
_LEAST_COST = 0.02  # nats per token; smaller costs are not blown up to full colour


@dataclass(frozen=True)
class AblationCost:
    """Rise of a task's loss without a part.

    Attributes:
        part: "shared expert"; "mmu group" and the like (``GROUP_NAMES``), whose tokens the other group's router and experts then
            serve, or the other group's set of an untied layer; where there are more than two groups "text group by drawn" says
            which one does; or "e3" (expert 3 of all), whose tokens then get nothing from it.
        layer: where, None for all layers at once.
        task: key of the task.
        cost: mean loss without minus with, in nats per target token, over the same batches.
        error: its standard error over batches; None of one batch.
    """

    part: str
    layer: int | None
    task: str
    cost: float
    error: float | None


@torch.no_grad()
def ablations(
    model: UnifiedModel, held: Held, progress: Progress = lambda what, done, of: None
) -> tuple[dict[str, float], list[AblationCost]]:
    """Loss of each task as it is (by task key), and what every part of ``model`` costs; no parts in a dense, tied model.

    Shared experts and groups (their experts, or their sets of untied layers and, with all layers, of the final norm) are taken away
    in all layers at once and in each; single experts in their layer alone, since experts of one number in different layers have
    nothing to do with each other.
    """
    intact = {task: _losses(model, task, batches) for task, batches in held.items()}
    parts = list(_parts(model))
    costs = []
    for done, (part, layer, changes) in enumerate(parts):
        progress("taking parts away", done, len(parts))
        with contextlib.ExitStack() as changed:
            for change in changes:
                changed.enter_context(change())
            for task, batches in held.items():
                without = _losses(model, task, batches)
                gaps = [after - before for after, before in zip(without, intact[task], strict=True)]
                error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else None
                costs.append(AblationCost(part, layer, task.key, statistics.fmean(gaps), error))
    return {task.key: statistics.fmean(losses) for task, losses in intact.items()}, costs


def _losses(model: UnifiedModel, task: Task, batches: Sequence[JointBatch]) -> list[float]:
    return [model(batch=batch).loss(task).item() for batch in batches]


def _parts(model: UnifiedModel) -> Iterator[tuple[str, int | None, list[Change]]]:
    """(part, layer, changes) of everything that can be taken away."""
    text, layers = model.config.text_config, list(model.decoder.layers)
    mixtures = {index: layer.mlp for index, layer in enumerate(layers) if isinstance(layer.mlp, MixtureOfExperts)}
    untied = {index: layer for index, layer in enumerate(layers) if text.num_weight_sets(index) > 1}
    if text.shared_expert:
        yield from _everywhere("shared expert", {index: _without_shared_expert(mixture) for index, mixture in mixtures.items()})
    names = GROUP_NAMES[text.group_by]
    for group, other in itertools.permutations(range(len(names)), 2):
        part = f"{names[group]} group" + (f" by {names[other]}" if len(names) > 2 else "")
        several = [(index, mixture) for index, mixture in mixtures.items() if mixture.num_groups > 1]
        yield from _everywhere(part, {index: [functools.partial(_sent, mixture, group, other)] for index, mixture in several})
        norm = _without_set(model.decoder.norm, group, other)
        yield from _everywhere(part, {index: _without_set(layer, group, other) for index, layer in untied.items()}, norm)
    for index, mixture in mixtures.items():
        for expert in range(mixture.experts.num_experts):
            yield f"e{expert}", index, _without_expert(mixture, expert)


def _everywhere(
    part: str, changes: Mapping[int, list[Change]], after: Sequence[Change] = ()
) -> Iterator[tuple[str, int | None, list[Change]]]:
    """``part`` in all layers at once (and what comes ``after`` them), and in each; nothing if no layer has it."""
    if changes:
        yield part, None, [*itertools.chain.from_iterable(changes.values()), *after]
        yield from ((part, layer, mine) for layer, mine in changes.items())


def _without_shared_expert(mixture: MixtureOfExperts) -> list[Change]:
    assert mixture.alpha is not None
    return [functools.partial(_filled, mixture.alpha, torch.zeros(()))]


def _without_set(layer: nn.Module, group: int, other: int) -> list[Change]:
    """The other group's weights in the place of this group's, in all that is untied in ``layer``."""
    untied = [module for module in layer.modules() if isinstance(module, (UntiedLinear, UniRMSNorm)) and module.num_sets > 1]
    return [functools.partial(_filled, weight[group], weight[other]) for module in untied for weight in module.parameters()]


def _without_expert(mixture: MixtureOfExperts, expert: int) -> list[Change]:
    """Its output is zero: the last matrix, and the low-rank update of it."""
    last = [mixture.experts.down_proj] + ([mixture.experts.down_lora_B] if mixture.experts.lora_rank else [])
    return [functools.partial(_filled, weight[expert], torch.zeros(())) for weight in last]


@contextlib.contextmanager
def _filled(place: Tensor, value: Tensor) -> Iterator[None]:
    """``value`` (a scalar fills it) in ``place``, a view of a weight."""
    kept = place.clone()
    try:
        place.copy_(value)
        yield
    finally:
        place.copy_(kept)


@contextlib.contextmanager
def _sent(mixture: MixtureOfExperts, group: int, other: int) -> Iterator[None]:
    """Tokens of ``group``, labelled or routed, are routed by the gate as tokens of ``other``, whatever the two groups' sizes."""
    gate = mixture.gate
    mixture.register_module("gate", _Sender(gate, group, other))
    try:
        yield
    finally:
        mixture.register_module("gate", gate)


class _Sender(nn.Module):
    """An ``ExpertRouter`` that takes tokens of one group for those of another."""

    def __init__(self, gate: nn.Module, group: int, other: int) -> None:
        super().__init__()
        self.gate, self.group, self.other = gate, group, other

    def forward(self, x: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As ``ExpertRouter``."""
        return self.gate(x, group.masked_fill(group == self.group, self.other))


def measure(probe_input: ProbeInput, progress: Progress) -> ProbeResult:
    """``ablations``: {"batches", "intact", "costs", "not_measured"}; the last says which parts of the model were not taken away."""
    held = {task: [probe_input.batch(task, BATCH, number) for number in range(probe_input.batches)] for task in probe_input.tasks}
    intact, costs = ablations(probe_input.model, held, progress)
    if not costs:
        return Skipped("the model is dense and no layer is untied: it has no experts and no sets of weights to take away")
    absent = _not_taken_away(probe_input.model.config.text_config)
    return {"batches": probe_input.batches, "intact": intact, "costs": [asdict(cost) for cost in costs], "not_measured": absent}


def _not_taken_away(text: UniLlamaConfig) -> list[str]:
    """What ``ablations`` passes over in a model in which it finds parts, and why."""
    routed = [target for target in text.lora_targets if text.num_lora_pairs(target) > 1]
    absent = ["groups of experts (there is one, which serves both tasks)"] if text.mixture_layers and text.num_groups == 1 else []
    return absent + ([f"low-rank updates routed by task ({', '.join(routed)})"] if routed else [])


def draw(measured: Any) -> Drawn:
    """A map of costs."""
    return [("", ablation_map("ablation", measured["costs"]))]


def ablation_map(name: str, costs: Sequence[Mapping[str, Any]]) -> Plot:
    """Cost of every part by layer, one panel per task; ``costs`` as ``measure`` gives them."""
    parts = list(dict.fromkeys(cost["part"] for cost in costs))
    layers = sorted({cost["layer"] for cost in costs if cost["layer"] is not None})
    tasks = [task for task in TASK_KEYS if any(cost["task"] == task for cost in costs)]
    some = any(cost["layer"] is None for cost in costs)
    rows = ["all"] * some + [f"layer {layer}" for layer in layers]
    limit = max([_LEAST_COST, *(abs(cost["cost"]) for cost in costs if cost["layer"] is not None)])
    figure, axes = canvas(WIDTH, 1.2 + 0.36 * len(rows) + name_room(parts, len(tasks)), 1, len(tasks))
    for axis, task in zip(axes, tasks, strict=True):
        grid = np.full((len(rows), len(parts)), np.nan)
        shown = [cost for cost in costs if cost["task"] == task]
        for cost in shown:
            row = 0 if cost["layer"] is None else some + layers.index(cost["layer"])
            grid[row, parts.index(cost["part"])] = cost["cost"]
        draw_grid(axis, grid, limit, "RdBu_r")
        label_grid(axis, f"Loss of {TASK_NAMES[task]}, + nats per token", parts, rows, len(tasks))
        if some:
            axis.axhline(1, color=INK, lw=1.2)
    caption = f"{_dearest(costs, tasks)} Red costs, blue gains; the colours are scaled to single layers."
    return Plot(to_svg(figure, name), f"What taking parts away costs. {caption}", caption)


def _dearest(costs: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> str:
    """What is dearest to each task, in all layers if that was measured."""
    words = []
    for task in tasks:
        mine = [cost for cost in costs if cost["task"] == task]
        whole = [cost for cost in mine if cost["layer"] is None] or mine
        most = max(whole, key=lambda cost: cost["cost"])
        place = "in all layers" if most["layer"] is None else f"in layer {most['layer']}"
        error = "" if most["error"] is None else f" ± {decimal(most['error'], 2)}"
        lost = f"{decimal(most['cost'], 2)}{error} nats per token"
        words.append(f"{TASK_NAMES[task]} loses {lost} without the {most['part']} {place}")
    return f"{listed(words)} (± standard error over batches).".capitalize()


PROBE: Final = Probe(
    "ablation",
    "What is each part worth?",
    measure,
    draw,
    "How much the held-out loss of each task rises when a part is taken away from the trained model: the shared expert; a "
    "group's experts, or its set of untied layers, whose tokens another group's then serve (of three, the one named after "
    "'by'); a single expert.",
    "A group whose removal costs its task nothing: the groups have not specialized. A shared expert that is worth nothing. A "
    "part that costs the other task much: it is not private to its task.",
    "ours; what is removed is UniDecouple's, arXiv 2506.03591",
)
