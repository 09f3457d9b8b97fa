"""L_group of UniDecouple (arXiv 2506.03591, eq. 2): the task-aware routers are taught the tokens' tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from unidecouple.batch import Batch, Task
from unidecouple.models.router import Routing


def group_router_loss(batches: Sequence[Batch], routing: Sequence[Sequence[Routing]], mmu_weight: float = 1.0) -> Tensor:
    """Mean cross-entropy of the level-1 router's logits against the tokens' tasks, over tokens and layers.

    Each task weighs the same however few its tokens are (ours; the paper's form is unpublished): with scarce replay the
    plain mean would let the router forget the rare task. A higher ``mmu_weight`` sends what could be either to understanding:
    its experts have more to lose, and a prompt's words can do without the other's in a layer or two.

    Args:
        batches: the joint batch.
        routing: for each of its batches, one ``Routing`` a layer.
        mmu_weight: weight of understanding against generation's 1.

    Returns:
        Scalar; zero if no layer has a task router.
    """
    by_task: dict[int, list[Tensor]] = {}
    for batch, layers in zip(batches, routing, strict=True):
        keep = batch.attention_mask.flatten()
        tasks = batch.task_ids.flatten()[keep]
        for layer in layers:
            if layer.task_logits is not None:
                losses = F.cross_entropy(layer.task_logits[keep], tasks, reduction="none")
                for task in tasks.unique().tolist():
                    by_task.setdefault(task, []).append(losses[tasks == task])
    if not by_task:
        return torch.zeros((), device=batches[0].input_ids.device)
    weights = torch.tensor([mmu_weight if task == Task.MMU else 1.0 for task in by_task], device=batches[0].input_ids.device)
    means = torch.stack([torch.cat(parts).mean() for parts in by_task.values()])
    return (weights * means).sum() / weights.sum()


@torch.no_grad()
def router_accuracy(batches: Sequence[Batch], routing: Sequence[Sequence[Routing]]) -> dict[int, float]:
    """Share of tokens of each task that the task-aware routers put in the right group, over layers; empty without a router."""
    right: dict[int, list[Tensor]] = {}
    for batch, layers in zip(batches, routing, strict=True):
        keep = batch.attention_mask.flatten()
        tasks = batch.task_ids.flatten()[keep]
        for layer in layers:
            if layer.task_logits is not None:
                hit = layer.task_logits[keep].argmax(-1) == tasks
                for task in tasks.unique().tolist():
                    right.setdefault(task, []).append(hit[tasks == task].float())
    return {task: float(torch.cat(hits).mean()) for task, hits in right.items()}
