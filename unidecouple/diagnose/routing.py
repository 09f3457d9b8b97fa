"""Where tokens of each task go, and how sure the routers are: shares of groups and experts by layer, entropies, dead experts.

Everything is computed from one table of counts, which a training step takes from its own ``Routing``: no extra forward.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from unidecouple.batch import TASK_KEYS, JointBatch, Task, membership, sum_by_task
from unidecouple.diagnose.probe import BATCH, Drawn, Probe, ProbeInput, ProbeResult, Skipped
from unidecouple.figures.grids import bare, draw_grid, label_grid
from unidecouple.figures.style import (
    DARK,
    INK,
    MUTED,
    PAPER,
    TASK_COLORS,
    WIDTH,
    Plot,
    VariantStyle,
    canvas,
    name_panel,
    to_svg,
    variant_styles,
)
from unidecouple.figures.wording import TASK_NAMES, decimal, listed
from unidecouple.models.router import Routing, stacked_task_logits
from unidecouple.source import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from unidecouple.models.base import UnifiedModel
    from unidecouple.models.configuration import UniLlamaConfig

_GROUPS = (*TASK_COLORS.values(), "#6f9f78", "#9f77a8")
DEAD = 0.05
"""An expert is dead that gets less than this share of what it would get if its group's tokens spread evenly."""


@torch.no_grad()
def count_routing(joint: JointBatch, routing: Sequence[Sequence[Routing]], sizes: Sequence[int]) -> Tensor | None:
    """Counts of the real tokens of ``joint``; they add up over batches, parts of a step and processes.

    Args:
        joint: the batches.
        routing: for each, one ``Routing`` per mixture.
        sizes: experts in each group.

    Returns:
        (mixtures, tasks, experts + 2) float64: how often each expert was chosen; then the sum over tokens of the entropy of
        the router's probabilities inside the token's group, as a share of its maximum; then the tokens. None without a mixture.
    """
    tables = []
    for batch, layers in zip(joint, routing, strict=True):
        real = batch.places.real
        of_task = membership(batch.task_ids.flatten().index_select(0, real), len(Task)).double().T
        for layer in layers:
            chosen = membership(layer.expert.index_select(0, real), sum(sizes)).sum(1).double()
            entropy = torch.special.entr(layer.expert_probs.index_select(0, real).double()).sum(-1)
            in_group = membership(layer.group.index_select(0, real), len(sizes)).double()
            entropy = entropy / sum(math.log(max(size, 2)) * mine for size, mine in zip(sizes, in_group.unbind(-1), strict=True))
            tables.append(of_task @ torch.cat([chosen, entropy.unsqueeze(-1), torch.ones_like(chosen[:, :1])], dim=-1))
    return torch.stack(tables).unflatten(0, (len(joint), -1)).sum(0) if tables else None


@torch.no_grad()
def router_hits(joint: JointBatch, routing: Sequence[Sequence[Routing]]) -> Tensor | None:
    """(tasks,) real tokens that the task routers put in the right group, mean over layers; None without a task router."""
    hits = []
    for batch, layers in zip(joint, routing, strict=True):
        logits = stacked_task_logits(layers, batch.places.real)
        if logits is not None:
            tasks = batch.task_ids.flatten().index_select(0, batch.places.real)
            hits.append(sum_by_task((logits.argmax(-1) == tasks).float().mean(0), tasks))
    return torch.stack(hits).sum(0) if hits else None


def routing_rows(counts: Tensor, layers: Sequence[int], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """``counts`` of ``count_routing`` as one JSON object per mixture; tasks without tokens are left out of each mapping.

    Returns:
        Of each: ``layer``; ``sizes`` of its groups; by task key ``group_share`` and ``expert_share`` (each sums to one),
        ``load_entropy`` (how evenly the task's tokens spread over the experts of their group: 1 evenly, 0 all to one) and
        ``token_entropy`` (how undecided the router is on a single token: 1 if every expert is as likely, 0 if one is certain),
        both as shares of their maximum and None where groups have one expert; ``dead``: experts, all tasks together, see
        ``DEAD``. Experts of a group that no token came to are not called dead.
    """
    rows = []
    for layer, table in zip(layers, counts.cpu(), strict=True):
        row: dict[str, Any] = {"layer": layer, "sizes": list(sizes)}
        row |= {name: {} for name in ("group_share", "expert_share", "load_entropy", "token_entropy")}
        for task in Task:
            chosen, entropy, tokens = table[task, :-2], table[task, -2].item(), table[task, -1].item()
            if tokens:
                groups = torch.stack([part.sum() for part in chosen.split(list(sizes))])
                row["group_share"][task.key] = (groups / groups.sum()).tolist()
                row["expert_share"][task.key] = (chosen / chosen.sum()).tolist()
                row["load_entropy"][task.key] = _load_entropy(chosen, sizes)
                row["token_entropy"][task.key] = entropy / tokens if max(sizes) > 1 else None
        row["dead"] = _dead(table[:, :-2].sum(0), sizes)
        rows.append(row)
    return rows


@torch.no_grad()
def routing_map(model: UnifiedModel, joint: JointBatch) -> list[dict[str, Any]]:
    """``routing_rows`` of ``joint`` by the model's own routers, each with ``alpha``; none for dense models."""
    from unidecouple.models.moe import MixtureOfExperts  # imports transformers' models, seconds

    mixtures = [(index, layer.mlp) for index, layer in enumerate(model.decoder.layers) if isinstance(layer.mlp, MixtureOfExperts)]
    sizes = model.config.text_config.expert_groups
    tables = [count_routing((batch,), (model.decode_batch(batch).routing or (),), sizes) for batch in joint]
    found = [table for table in tables if table is not None]
    if not found:
        return []
    rows = routing_rows(torch.stack(found).sum(0), [layer for layer, _ in mixtures], sizes)
    alphas = [None if mixture.alpha is None else mixture.alpha.item() for _, mixture in mixtures]
    return [row | {"alpha": alpha} for row, alpha in zip(rows, alphas, strict=True)]


@torch.no_grad()
def expert_usage(model: UnifiedModel, joints: Iterable[JointBatch]) -> list[Tensor]:
    """How often the real tokens of ``joints`` were sent to each expert: for each mixture (E,) int64, by the order of layers."""
    totals: list[Tensor] = []
    for batch in itertools.chain.from_iterable(joints):
        keep = batch.attention_mask.flatten()
        layers = model.decode_batch(batch).routing or ()
        counts = [torch.bincount(layer.expert[keep].flatten(), minlength=sum(map(len, layer.expert_ranges))) for layer in layers]
        totals = [old + new for old, new in zip(totals, counts, strict=True)] if totals else counts
    return totals


def _load_entropy(chosen: Tensor, sizes: Sequence[int]) -> float | None:
    """Entropy of the expert given the group, as a share of its maximum: mean over groups of several, by their tokens."""
    parts = [part for part in chosen.split(list(sizes)) if len(part) > 1 and part.sum() > 0]
    if not parts:
        return None
    entropies = torch.stack([torch.special.entr(part / part.sum()).sum() / math.log(len(part)) for part in parts])
    weights = torch.stack([part.sum() for part in parts])
    return ((entropies * weights).sum() / weights.sum()).item()


def _dead(chosen: Tensor, sizes: Sequence[int]) -> list[int]:
    dead, start = [], 0
    for part in chosen.split(list(sizes)):
        fair = part.sum().item() / len(part)
        dead += [start + place for place, count in enumerate(part.tolist()) if fair and count < DEAD * fair]
        start += len(part)
    return dead


def measure(probe_input: ProbeInput, progress: Progress) -> ProbeResult:
    """``routing_map``: {"layers"}."""
    both = tuple(
        batch for task in probe_input.tasks for n in range(probe_input.batches) for batch in probe_input.batch(task, BATCH, n)
    )
    layers = routing_map(probe_input.model, both)
    return {"layers": layers} if layers else Skipped(_no_router(probe_input.model.config.text_config))


def draw(measured: Any) -> Drawn:
    """Where tokens go."""
    style = variant_styles(["checkpoint"], str, role=lambda _: "focus")["checkpoint"]
    return [("", draw_routing("routing", "Routing", routing_of(measured), style))]


@dataclass(frozen=True)
class RoutingLayer:
    """Shares of each task's tokens by group and by expert (over all groups), by task key; each sums to one.

    The entropies, dead experts and ``sizes`` (experts in each group) are those of ``diagnose.routing.routing_rows``; logs of
    earlier versions lack them.
    """

    layer: int
    alpha: float | None
    group_share: Mapping[str, Sequence[float]]
    expert_share: Mapping[str, Sequence[float]]
    load_entropy: Mapping[str, float | None] = field(default_factory=dict)
    token_entropy: Mapping[str, float | None] = field(default_factory=dict)
    dead: Sequence[int] = ()
    sizes: Sequence[int] = ()


def routing_of(content: Mapping[str, Any]) -> tuple[RoutingLayer, ...]:
    """The content of ``routing.json``, or of a record of ``routing.jsonl`` (which knows no alpha), as typed values."""
    return tuple(RoutingLayer(**{"alpha": None} | layer) for layer in content["layers"])


def draw_routing(name: str, title: str, layers: Sequence[RoutingLayer], look: VariantStyle) -> Plot | None:
    """Shares of groups and experts by task and layer, and alpha. None if there are no layers."""
    if not layers:
        return None
    experts = {task: _experts(layers, task) for task in TASK_KEYS}
    shown = [task for task in TASK_KEYS if experts[task] is not None]
    alphas = [(position, layer.alpha) for position, layer in enumerate(layers) if layer.alpha is not None]
    groups = max((len(share) for layer in layers for share in layer.group_share.values()), default=1)
    figure, axes = canvas(WIDTH, 1.3 + 0.4 * len(layers), 1, (groups > 1) + len(shown) + bool(alphas))
    if groups > 1:
        _group_bars(axes[0], layers)
    for axis, task in zip(axes[groups > 1 :], shown, strict=False):
        grid = np.array(experts[task])
        draw_grid(axis, grid, 1, "Blues")
        names = [f"e{n}" for n in range(grid.shape[1])]
        rows = [f"layer {layer.layer}" for layer in layers]
        label_grid(axis, f"Experts of {TASK_NAMES[task]} tokens", names, rows, len(axes))
        for edge in itertools.accumulate(layers[0].sizes[:-1]):
            axis.axvline(edge, color=DARK, lw=1.4)
    if alphas:
        _alpha_bars(axes[-1], layers, alphas, look)
    caption = "One group only: the tasks share all experts."
    if groups > 1:
        own = [(task, _own_share(layers, number, task)) for number, task in enumerate(TASK_KEYS) if task in shown]
        caption = listed([f"{100 * share:.1f}% of {TASK_NAMES[task]} tokens" for task, share in own])
        caption += " go to their own task's group, on average over layers."
    if alphas:
        caption += f" Alpha, the weight of the shared expert, is {decimal(float(np.mean([a for _, a in alphas])), 2)} on average."
    return Plot(to_svg(figure, name), f"{title}: {caption}", caption)


def _experts(layers: Sequence[RoutingLayer], task: str) -> list[list[float]] | None:
    """(layers, experts), or None where a layer saw no token of ``task``."""
    shares = [layer.expert_share.get(task) for layer in layers]
    found = [list(share) for share in shares if share is not None]
    return found if len(found) == len(layers) else None


def _own_share(layers: Sequence[RoutingLayer], group: int, task: str) -> float:
    shares = [layer.group_share.get(task, ()) for layer in layers]
    return float(np.mean([share[group] for share in shares if len(share) > group] or [0.0]))


def _group_bars(axis: Axes, layers: Sequence[RoutingLayer]) -> None:
    """For each layer and task one bar of length one, cut by group."""
    places, names = [], []
    for position, layer in enumerate(layers):
        for number, task in enumerate(TASK_KEYS):
            height, left = position + 0.42 * number, 0.0
            places.append(height)
            names.append(f"layer {layer.layer}  {task}" if number == 0 else task)
            for group, share in enumerate(layer.group_share.get(task, ())):
                axis.barh(height, share, 0.36, left, color=_GROUPS[group % len(_GROUPS)], edgecolor=PAPER, linewidth=0.8)
                left += share
    axis.set_yticks(places, names)
    axis.set_xticks([0, 0.5, 1], ["0", "50%", "100%"])
    name_panel(axis, "Group (blue: understanding)")
    axis.invert_yaxis()
    bare(axis)


def _alpha_bars(axis: Axes, layers: Sequence[RoutingLayer], alphas: Sequence[tuple[int, float]], look: VariantStyle) -> None:
    bars: Any = axis.barh([position for position, _ in alphas], [alpha for _, alpha in alphas], 0.55, color=look.color)
    axis.bar_label(bars, [decimal(alpha, 2) for _, alpha in alphas], padding=4, color=INK, fontsize=9)
    axis.axvline(0, color=MUTED, lw=0.8)
    axis.set_yticks(range(len(layers)), [f"layer {layer.layer}" for layer in layers])
    name_panel(axis, "Alpha (shared expert)")
    axis.margins(x=0.18)
    axis.invert_yaxis()
    bare(axis)


def _no_router(text: UniLlamaConfig) -> str:
    if text.per_group_layers is None:
        return "the model is dense: it has no router"
    return f"no router: {text.described}, and a token's group id selects its set of weights"


PROBE: Final = Probe(
    "routing",
    "Where are tokens routed?",
    measure,
    draw,
    "Each token is sent to a group of experts, then to experts in it, by the model's own routers, without task labels.",
    "A task whose tokens go to the other's group, and experts with almost no tokens: they were paid for and do nothing.",
    "UniDecouple, arXiv 2506.03591",
)
