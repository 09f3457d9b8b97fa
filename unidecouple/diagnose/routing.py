"""Where tokens of each task go, and how sure the routers are: shares of groups and experts by layer, entropies, dead experts.

Everything is computed from one table of counts, which a training step takes from its own ``Routing``: no extra forward.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unidecouple.batch import JointBatch, Task
from unidecouple.models.base import UnifiedModel
from unidecouple.models.moe import MixtureOfExperts
from unidecouple.models.router import Routing

DEAD = 0.05
"""An expert is dead that gets less than this share of what it would get if its group's tokens spread evenly."""


@torch.no_grad()
def count_routing(joint: JointBatch, routing: Sequence[Sequence[Routing]], sizes: Sequence[int]) -> Tensor | None:
    """Counts of the real tokens of ``joint``; they add up over batches, parts of a step and processes.

    Args:
        joint: the batches.
        routing: for each, one ``Routing`` a mixture.
        sizes: experts in each group.

    Returns:
        (mixtures, tasks, experts + 2) float64: how often each expert was chosen; then the sum over tokens of the entropy of
        the router's probabilities inside the token's group, as a share of its maximum; then the tokens. None without a mixture.
    """
    most = torch.tensor([math.log(max(size, 2)) for size in sizes], dtype=torch.float64)
    tables = []
    for batch, layers in zip(joint, routing, strict=True):
        keep = batch.attention_mask.flatten()
        of_task = F.one_hot(batch.task_ids.flatten()[keep], len(Task)).double().T
        for layer in layers:
            chosen = F.one_hot(layer.expert[keep], sum(sizes)).sum(1).double()
            doubt = torch.special.entr(layer.expert_probs[keep].double()).sum(-1) / most.to(keep.device)[layer.group[keep]]
            tables.append(of_task @ torch.cat([chosen, doubt.unsqueeze(-1), torch.ones_like(chosen[:, :1])], dim=-1))
    return torch.stack(tables).unflatten(0, (len(joint), -1)).sum(0) if tables else None


@torch.no_grad()
def router_hits(joint: JointBatch, routing: Sequence[Sequence[Routing]]) -> Tensor | None:
    """(tasks,) real tokens that the task routers put in the right group, mean over layers; None without a task router."""
    hits = []
    for batch, layers in zip(joint, routing, strict=True):
        keep = batch.attention_mask.flatten()
        tasks = batch.task_ids.flatten()[keep]
        right = [layer.task_logits[keep].argmax(-1) == tasks for layer in layers if layer.task_logits is not None]
        if right:  # summed by a product: scattered additions differ from run to run on a GPU
            hits.append((torch.stack(right).float().mean(0).unsqueeze(-1) * F.one_hot(tasks, len(Task))).sum(0))
    return torch.stack(hits).sum(0) if hits else None


def routing_rows(counts: Tensor, layers: Sequence[int], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """``counts`` of ``count_routing`` as one JSON object a mixture; tasks without tokens are left out of each mapping.

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
            chosen, doubt, tokens = table[task, :-2], table[task, -2].item(), table[task, -1].item()
            if tokens:
                groups = torch.stack([part.sum() for part in chosen.split(list(sizes))])
                row["group_share"][task.key] = (groups / groups.sum()).tolist()
                row["expert_share"][task.key] = (chosen / chosen.sum()).tolist()
                row["load_entropy"][task.key] = _load_entropy(chosen, sizes)
                row["token_entropy"][task.key] = doubt / tokens if max(sizes) > 1 else None
        row["dead"] = _dead(table[:, :-2].sum(0), sizes)
        rows.append(row)
    return rows


@torch.no_grad()
def routing_map(model: UnifiedModel, joint: JointBatch) -> list[dict[str, Any]]:
    """``routing_rows`` of ``joint`` by the model's own routers, each with ``alpha``; none for dense models."""
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
        counts = [torch.bincount(layer.expert[keep].flatten(), minlength=sum(map(len, layer.spans))) for layer in layers]
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
