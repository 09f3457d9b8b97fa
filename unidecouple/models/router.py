"""The two levels of routing of a task-aware mixture of experts (UniDecouple, arXiv 2506.03591, section 3)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unidecouple.models.lora import low_rank, start_low_rank


@dataclass
class Routing:
    """Routing of one layer's tokens; N = batch x length.

    Attributes:
        task_logits: (N, tasks) float32, logits of the task-aware router; None if there is one group.
        group: (N,) int64, the group of each token.
        expert_probs: (N, e) float32, softmax over the experts of the token's group; e is the size of the largest group, and
            columns past the end of a smaller group are zero.
        expert: (N, k) int64, the experts chosen, numbered over all groups (group-major).
        group_sizes: experts of each group, in order; by default one group.
    """

    task_logits: Tensor | None
    group: Tensor
    expert_probs: Tensor
    expert: Tensor
    group_sizes: tuple[int, ...] = ()

    @property
    def expert_ranges(self) -> tuple[range, ...]:
        """The experts of each group, by their numbers."""
        return consecutive_ranges(self.group_sizes or (self.expert_probs.shape[-1],))


def stacked_task_logits(layers: Sequence[Routing], places: Tensor) -> Tensor | None:
    """Return the task routers' logits of the tokens at ``places``, (layers, places, groups); None without a task router."""
    found = [layer.task_logits for layer in layers if layer.task_logits is not None]
    return torch.stack(found).index_select(1, places) if found else None


def consecutive_ranges(sizes: Sequence[int]) -> tuple[range, ...]:
    """Return one range per size, each starting where the previous one ends: sizes 2, 3 give 0..1, 2..4."""
    return tuple(range(end - size, end) for size, end in zip(sizes, itertools.accumulate(sizes), strict=True))


class TaskAwareRouter(nn.Module):
    """Level 1: ``g = argmax softmax(W_task x)``, hard, for each token.

    The argmax passes no gradient, so the group loss alone trains ``W_task``. Its input is detached (unpublished; ours): the
    group loss trains the router to separate the tasks, not the backbone. W_task starts at zero, so before training every token
    belongs to group 0, understanding.
    """

    def __init__(self, hidden_size: int, groups: int, rank: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(groups, hidden_size))
        self.scale = scale if rank else 0.0
        if rank:
            self.lora_A, self.lora_B = low_rank(1, rank, hidden_size, groups)

    def reset(self) -> None:
        """Set W_task to zero and initialise LoRA, where there is one."""
        nn.init.zeros_(self.weight)
        if self.scale:
            start_low_rank(self.lora_A, self.lora_B)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, H) to logits (N, groups) in float32, since bfloat16 flips decisions near ties."""
        weight = _updated(self.weight.unsqueeze(0), self.lora_A, self.lora_B, self.scale)[0] if self.scale else self.weight
        return float32_linear(x.detach(), weight)


class ExpertRouter(nn.Module):
    """Level 2: ``s = TopK(softmax(W_e^(g) x))`` inside the token's group g.

    ``weight`` has one row per expert: (G, e, H) if all G groups have e experts, else (E, H), group-major.

    Args:
        hidden_size: H.
        group_sizes: experts of each group.
        top_k: k, the number of experts per token.
        rank, scale: of LoRA, one pair per group; only for groups of equal size.
    """

    def __init__(self, hidden_size: int, group_sizes: tuple[int, ...], top_k: int, rank: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        self.group_sizes, self.top_k, self.scale = group_sizes, top_k, scale if rank else 0.0
        equal = len(set(group_sizes)) == 1
        rows = (len(group_sizes), group_sizes[0]) if equal else (sum(group_sizes),)
        self.weight = nn.Parameter(torch.empty(*rows, hidden_size))
        if rank:  # tasks share no part of a pair
            self.lora_A, self.lora_B = low_rank(len(group_sizes), rank, hidden_size, group_sizes[0])
        self.reset()

    def reset(self) -> None:
        """Initialise with small random weights: experts start as copies, so the router must break the symmetry."""
        nn.init.normal_(self.weight, std=0.02)
        if self.scale:
            start_low_rank(self.lora_A, self.lora_B)

    def forward(self, x: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Choose k experts per token.

        The weights of the k chosen experts are ``p_i / stopgrad(sum p)``: they sum to one, which keeps upcycling exact, and
        for k = 1 still pass a gradient to the router. The paper does not state how its gate weights the experts; this is ours.

        Args:
            x: (N, H) tokens.
            group: (N,) int64 group of each token.

        Returns:
            probabilities (N, e) float32 (e of the largest group), weights (N, k) float32, expert index (N, k) over all groups.
        """
        weight = _updated(self.weight, self.lora_A, self.lora_B, self.scale) if self.scale else self.weight
        logits, sizes = float32_linear(x, weight.flatten(0, -2)), self.group_sizes
        if len(sizes) == 1:
            probs = ranked = logits.softmax(-1)
            first: Tensor | int = 0
        elif len(set(sizes)) == 1:
            mine = group.view(-1, 1, 1).expand(-1, 1, sizes[0])
            probs = ranked = logits.unflatten(1, (len(sizes), sizes[0])).gather(1, mine).squeeze(1).softmax(-1)
            first = sizes[0] * group.unsqueeze(-1)
        else:
            first, size = (_of_group(group, values).unsqueeze(-1) for values in ([0, *itertools.accumulate(sizes[:-1])], sizes))
            place = torch.arange(max(sizes), device=x.device)
            past_end = place >= size
            mine = logits.gather(1, (first + place).clamp_max(logits.shape[1] - 1))
            probs = mine.masked_fill(past_end, -torch.inf).softmax(-1)
            ranked = probs.masked_fill(past_end, -1.0)  # a real expert's may round to zero
        top, index = ranked.topk(self.top_k, dim=-1)
        return probs, top / top.sum(-1, keepdim=True).detach(), first + index


def _of_group(group: Tensor, values: Sequence[int]) -> Tensor:
    """``values[group]``, with no table that would have to be copied to a GPU."""
    found = torch.full_like(group, values[0])
    for number, (before, value) in enumerate(itertools.pairwise(values), start=1):
        found = found + (value - before) * (group >= number)
    return found


def _updated(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scale: float) -> Tensor:
    """``W + (lora_alpha / r) B A`` (groups, out, in) in float32: a router is small, so its whole weight is built."""
    with torch.autocast(weight.device.type, enabled=False):
        return weight.float() + scale * (lora_b.float() @ lora_a.float())


def float32_linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x weight^T`` in float32, under autocast too."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.float(), weight.float())
