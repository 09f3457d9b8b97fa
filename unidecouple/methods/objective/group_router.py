"""L_group of UniDecouple (arXiv 2506.03591, eq. 2): the task-aware routers are taught the tokens' tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unidecouple import bounds
from unidecouple.batch import Batch, Task, count_tokens, sum_by_task
from unidecouple.methods.objective.terms import Microbatch, Term
from unidecouple.models.router import Routing, stacked_task_logits


def group_router_loss(
    batches: Sequence[Batch], routing: Sequence[Sequence[Routing]], mmu_weight: float = 1.0, tokens: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropy of the level-1 routers' logits against the tokens' tasks, over tokens and layers.

    Each task weighs the same however few its tokens are (ours; the paper's form is unpublished): with scarce replay the
    plain mean would let the router forget the rare task. A higher ``mmu_weight`` sends what could be either to understanding:
    its experts have more to lose, and a prompt's words can do without the other's in a layer or two.

    Args:
        batches: the joint batch.
        routing: for each of its batches, one ``Routing`` a layer.
        mmu_weight: weight of understanding against generation's 1.
        tokens: (tasks,) tokens that the mean is over, where ``batches`` are a part of a step; the parts' losses then sum to
            the step's. By default those of ``batches``.

    Returns:
        Scalar; zero if no layer has a task router.
    """
    counts = count_tokens(batches) if tokens is None else tokens
    importance = torch.ones(len(Task), device=counts.device)
    importance[Task.MMU] = mmu_weight
    importance = importance * (counts > 0)
    sums = torch.zeros(len(Task), device=counts.device)
    for batch, layers in zip(batches, routing, strict=True):
        logits = stacked_task_logits(layers, batch.places.real)
        if logits is not None:
            tasks = batch.task_ids.flatten().index_select(0, batch.places.real)
            losses = F.cross_entropy(logits.flatten(0, 1), tasks.repeat(len(logits)), reduction="none")
            sums = sums + sum_by_task(losses.unflatten(0, (len(logits), -1)).mean(0), tasks)
    return (importance * sums / counts.clamp_min(1)).sum() / importance.sum().clamp_min(1e-9)


@dataclass(frozen=True)
class GroupRouterLoss:
    """L_group as an auxiliary loss of no task; models without a task router have none.

    Attributes:
        coeff: gamma of eq. 2; unpublished.
        mmu_weight: understanding's weight inside the loss, against generation's 1. Ours.
    """

    kind: Literal["group_router"] = "group_router"
    coeff: float = 1.0
    mmu_weight: float = 1.0

    per_microbatch: ClassVar[bool] = False
    needs_attention_stats: ClassVar[bool] = False

    def __post_init__(self) -> None:
        bounds.at_least(0, self, "coeff", "mmu_weight")

    def terms(self, part: Microbatch) -> dict[str, Term]:
        """``group``; nothing where the coefficient is 0."""
        if not self.coeff:
            return {}
        return {"group": Term(group_router_loss(part.batch, part.output.routing, self.mmu_weight, part.totals.tokens), self.coeff)}
