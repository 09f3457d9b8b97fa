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

import torch
from torch import Tensor, nn

from unidecouple.batch import JointBatch, Task
from unidecouple.models.base import UnifiedModel
from unidecouple.models.groups import GROUP_NAMES
from unidecouple.models.moe import MixtureOfExperts
from unidecouple.models.untied import UniRMSNorm, UntiedLinear

Change = Callable[[], contextlib.AbstractContextManager[None]]
"""Changes a model on entry, and puts it back on exit."""
Held = Mapping[Task, Sequence[JointBatch]]
"""Held-out batches of each task."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class AblationCost:
    """What a task pays for doing without a part.

    Attributes:
        part: "shared expert"; "mmu group" and the like (``GROUP_NAMES``), whose tokens the other group's router and experts then
            serve, or the other group's set of an untied layer; where there are more than two groups "text group by drawn" says
            which one does; or "e3" (expert 3 of all), whose tokens then get nothing from it.
        layer: where, None for all layers at once.
        task: key of the task.
        cost: mean loss without minus with, in nats a target token, over the same batches.
        error: its standard error over batches; None of one batch.
    """

    part: str
    layer: int | None
    task: str
    cost: float
    error: float | None

    def to_json(self) -> dict[str, float | str | None]:
        """As a JSON object."""
        return asdict(self)


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
    untied = [module for module in layer.modules() if isinstance(module, (UntiedLinear, UniRMSNorm)) and module.sets > 1]
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
    """Tokens of ``group``, told or found, are routed by the gate as tokens of ``other``, whatever the two groups' sizes."""
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
