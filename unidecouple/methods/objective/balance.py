"""Load balancing inside each group of experts (Switch Transformer, arXiv 2101.03961, eq. 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from unidecouple.batch import Batch
from unidecouple.models.router import Routing


def balance_loss(batches: Sequence[Batch], routing: Sequence[Sequence[Routing]]) -> Tensor:
    """``e * sum_i share_i * probability_i`` of each group, averaged over groups present, layers and batches.

    One where tokens spread evenly, e where one expert takes all. UniDecouple reports none; the plain mixture needs it.
    """
    terms: list[Tensor] = []
    for batch, layers in zip(batches, routing, strict=True):
        keep = batch.attention_mask.flatten()
        for layer in layers:
            group, probs, expert = layer.group[keep], layer.expert_probs[keep], layer.expert[keep]
            experts = probs.shape[-1]
            for number in group.unique().tolist():
                mine = group == number
                chosen = F.one_hot(expert[mine] - number * experts, experts).float().sum(1)
                share = chosen.mean(0) / chosen.sum(-1).mean()
                terms.append(experts * (share * probs[mine].mean(0)).sum())
    if not terms:
        return torch.zeros((), device=batches[0].input_ids.device)
    return torch.stack(terms).mean()
