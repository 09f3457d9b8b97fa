"""Load balancing inside each group of experts (Switch Transformer, arXiv 2101.03961, eq. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unidecouple import bounds
from unidecouple.batch import Batch, count_tokens, membership, to_device
from unidecouple.methods.objective.terms import Microbatch, SumOverProcesses, Term
from unidecouple.models.router import Routing


def balance_loss(
    batches: Sequence[Batch], routing: Sequence[Sequence[Routing]], total: SumOverProcesses = lambda value: value
) -> Tensor:
    """``e * sum_i share_i * probability_i`` of each group, averaged over the groups present and the layers.

    One where a group's tokens spread evenly over its e experts, e where one expert takes all; so groups of any size weigh the
    same, and one without tokens has no say. ``share_i`` passes no gradient. A group's tokens count together, from whichever
    batch they come (ours, against one term a batch): the few tokens a task lends the other's group are no group of their own.
    UniDecouple reports no such loss; the plain mixture needs it, and Symbiotic-MoE and Rosetta use it at 0.01.

    Args:
        batches: a joint batch, or one process's share of it.
        routing: for each of its batches, one ``Routing`` a layer.
        total: sums a tensor over the processes that share the batch. Each then has its share of the loss, and these sum to the
            loss of the whole.

    Returns:
        Scalar; zero if no layer is a mixture.
    """
    if not routing[0]:
        return torch.zeros((), device=batches[0].input_ids.device)
    ranges = routing[0][0].expert_ranges
    sums = torch.stack([_sums(layers, batch.places.real, ranges) for batch, layers in zip(batches, routing, strict=True)]).sum(0)
    whole = total(sums.detach())
    sizes = to_device(torch.tensor([len(span) for span in ranges]), sums.device)
    chosen, tokens = whole[..., 0, :], whole[..., 2, :1].clamp_min(1)
    share = chosen / chosen.sum(-1, keepdim=True).clamp_min(1)
    losses = sizes * (share * sums[..., 1, :] / tokens).sum(-1)
    return losses.sum() / (whole[..., 2, 0] > 0).sum().clamp_min(1)


def _sums(layers: Sequence[Routing], real: Tensor, ranges: Sequence[range]) -> Tensor:
    """(L, groups, 3, e) of a batch: times each expert was chosen, its probabilities added up, and the group's tokens (e times)."""
    stacked = (torch.stack([getattr(layer, name) for layer in layers]) for name in ("group", "expert_probs", "expert"))
    group, probs, expert = (part.index_select(1, real) for part in stacked)
    mine = membership(group, len(ranges)).to(probs.dtype).transpose(1, 2)  # (L, groups, N)
    counts, widest = membership(expert, ranges[-1].stop).sum((1, 2)).to(probs.dtype), probs.shape[-1]
    chosen = torch.stack([F.pad(part, (0, widest - part.shape[1])) for part in counts.split([*map(len, ranges)], dim=1)], dim=1)
    summed = mine @ probs
    return torch.stack([chosen, summed, mine.sum(2, keepdim=True).expand_as(summed)], dim=2)


@dataclass(frozen=True)
class LoadBalance:
    """Load balance as an auxiliary loss of no task.

    It is no mean over tokens. The processes that share a micro-batch balance it together; micro-batches of one process count by
    their tokens. So with gradient accumulation each micro-batch is balanced by itself, which asks for more than a balance over the
    step: results are near, not the same. Balancing the step as one would need every forward pass before the first backward pass,
    and the memory that accumulation saves.

    Attributes:
        coeff: weight of the loss.
    """

    kind: Literal["load_balance"] = "load_balance"
    coeff: float = 0.01

    needs_attention_stats: ClassVar[bool] = False

    def __post_init__(self) -> None:
        bounds.at_least(0, self, "coeff")

    @property
    def per_microbatch(self) -> bool:
        """Whether the loss depends on how a step is cut into micro-batches."""
        return self.coeff != 0

    def terms(self, part: Microbatch) -> dict[str, Term]:
        """``balance``; nothing where the coefficient is 0."""
        if not self.coeff:
            return {}
        share = part.sum_over_processes(count_tokens(part.batch)).sum() / part.totals.tokens.sum()
        loss = balance_loss(part.batch, part.output.routing, part.sum_over_processes)
        return {"balance": Term(share * loss, self.coeff)}
