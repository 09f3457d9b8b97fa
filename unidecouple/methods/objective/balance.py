"""Load balancing inside each group of experts (Switch Transformer, arXiv 2101.03961, eq. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unidecouple import bounds
from unidecouple.batch import Batch, count_tokens
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
    keeps = [batch.attention_mask.flatten() for batch in batches]
    sums = torch.stack([_sums(layers, keeps) for layers in zip(*routing, strict=True)])
    whole = total(sums.detach())
    sizes = torch.tensor([len(span) for span in routing[0][0].expert_ranges], device=sums.device)
    chosen, tokens = whole[..., 0, :], whole[..., 2, :1].clamp_min(1)
    share = chosen / chosen.sum(-1, keepdim=True).clamp_min(1)
    losses = sizes * (share * sums[..., 1, :] / tokens).sum(-1)
    return losses.sum() / (whole[..., 2, 0] > 0).sum().clamp_min(1)


def _sums(layer: Sequence[Routing], keeps: Sequence[Tensor]) -> Tensor:
    """(groups, 3, e) of one layer: times each expert was chosen, its probabilities added up, and the group's tokens (e times)."""
    ranges, widest = layer[0].expert_ranges, layer[0].expert_probs.shape[-1]
    rows = []
    for number, span in enumerate(ranges):
        mine = [keep & (part.group == number) for part, keep in zip(layer, keeps, strict=True)]
        probs = torch.cat([part.expert_probs[which] for part, which in zip(layer, mine, strict=True)])
        expert = torch.cat([part.expert[which] for part, which in zip(layer, mine, strict=True)]) - span.start
        chosen = F.one_hot(expert, widest).sum((0, 1))
        rows.append(torch.stack([chosen.to(probs.dtype), probs.sum(0), torch.full_like(probs[:1].sum(0), len(probs))]))
    return torch.stack(rows)


@dataclass(frozen=True)
class LoadBalance:
    """Load balance as an auxiliary loss of no task.

    It is no mean over tokens. The processes that share a micro-batch balance it together; micro-batches of one process count by
    their tokens. So with gradient accumulation each micro-batch is balanced by itself, which asks for more than a balance over the
    step: results are near, not the same. Balancing the step as one would need every forward pass before the first backward pass,
    and the memory that accumulation saves.

    Attributes:
        coeff: its weight.
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
