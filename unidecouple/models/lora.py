"""Low-rank adaptation (LoRA, arXiv 2106.09685), kept on activations so that no full-size delta is ever built."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unidecouple.batch import membership
from unidecouple.models.deltas import of_tasks

if TYPE_CHECKING:
    from unidecouple.models.configuration import UniLlamaConfig


def low_rank(groups: int, rank: int, inner: int, outer: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Return A (groups, rank, inner) and B (groups, outer, rank) of updates ``B A``, to be initialised by ``start_low_rank``."""
    return nn.Parameter(torch.empty(groups, rank, inner)), nn.Parameter(torch.zeros(groups, outer, rank))


def start_low_rank(lora_a: Tensor, lora_b: Tensor) -> None:
    """Initialise A (Kaiming uniform) and B (zero)."""
    nn.init.uniform_(lora_a, -1 / math.sqrt(lora_a.shape[-1]), 1 / math.sqrt(lora_a.shape[-1]))
    nn.init.zeros_(lora_b)


class LoraLinear(nn.Linear):
    """``y = W x + (lora_alpha / r) B_g A_g x``, with one pair (A, B) for all tokens or one per group g.

    With several pairs only that of a token's group applies; without a group (None) the result is ``W x``. B starts at zero, so a
    fresh adapter changes nothing. Deltas of one task (``models/deltas.py``) come on top, where there are any.

    Args:
        groups: number of (A, B) pairs; 0 makes this a plain linear layer.
        rank: r.
        scale: lora_alpha / r.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, groups: int, rank: int, scale: float) -> None:
        super().__init__(in_features, out_features, bias)
        self.groups, self.rank, self.scale = groups, rank, scale
        self.deltas = nn.ModuleDict()
        if groups:
            self.lora_A, self.lora_B = low_rank(groups, rank, in_features, out_features)
            self.reset_lora()

    def reset_lora(self) -> None:
        """See ``start_low_rank``."""
        start_low_rank(self.lora_A, self.lora_B)

    def forward(self, x: Tensor, group: Tensor | None = None) -> Tensor:
        """(..., in) -> (..., out); a pair per group, or a delta, needs ``group`` (...) int64."""
        y = self._shared(x, group)
        for delta, mine in of_tasks(self.deltas, group):
            y = delta(x, y, mine)
        return y

    def _shared(self, x: Tensor, group: Tensor | None) -> Tensor:
        if not self.groups or (self.groups > 1 and group is None):
            return F.linear(x, self.weight, self.bias)
        rows = x.reshape(-1, self.in_features)
        y = F.linear(rows, self.weight, self.bias)
        low = self.scale * F.linear(rows, self.lora_A.flatten(0, 1))  # scaled where it is narrow
        if self.groups > 1 and group is not None:
            mine = membership(group.flatten(), self.groups).to(low.dtype)
            low = (low.unflatten(-1, (self.groups, self.rank)) * mine.unsqueeze(-1)).flatten(-2)
        wide = self.lora_B.transpose(0, 1).flatten(1).to(y.dtype)  # autocast leaves what is written in place alone
        y.addmm_(low.to(y.dtype), wide.t())  # added as it is made: no further tensor as large as the output
        return y.view(*x.shape[:-1], self.out_features)


class MixedLoraLinear(LoraLinear):
    """``y = W x + (lora_alpha / r) sum_i w_i B_i A_i x`` with n weights ``w = softmax(R x)`` per token.

    Every B starts at zero, so a fresh update changes nothing; R starts as torch's linear layers do, since equal weights would keep
    the B's equal.

    Args:
        config: with n as ``lora_experts``, and with ``lora_kind`` "interaction": one A for all n B's (I-LoRA, arXiv 2603.04128);
            or "modality": each B has its A, and these n pairs serve text tokens; image tokens, group 1, have one more pair for
            themselves (MoDE, arXiv 2512.03125). There, without a group (None) the result is ``W x``.
        in_features, out_features, bias: as of ``nn.Linear``.
    """

    def __init__(self, config: UniLlamaConfig, in_features: int, out_features: int, bias: bool) -> None:
        rank, experts = config.lora_rank, config.lora_experts
        super().__init__(in_features, out_features, bias, 0, rank, config.lora_alpha / rank)
        self.groups, self.experts, self.by_modality = 1, experts, config.lora_kind == "modality"
        pairs = experts + self.by_modality
        self.lora_A = low_rank(pairs if self.by_modality else 1, rank, in_features, 0)[0]
        self.lora_B = low_rank(pairs, rank, 0, out_features)[1]
        self.lora_R = nn.Parameter(torch.empty(experts, in_features))
        self.reset_lora()

    def reset_lora(self) -> None:
        """Initialise A and R (Kaiming uniform) and B (zero)."""
        start_low_rank(self.lora_A, self.lora_B)
        nn.init.uniform_(self.lora_R, -1 / math.sqrt(self.in_features), 1 / math.sqrt(self.in_features))

    def _shared(self, x: Tensor, group: Tensor | None) -> Tensor:
        if self.by_modality and group is None:
            return F.linear(x, self.weight, self.bias)
        rows = x.reshape(-1, self.in_features)
        y = F.linear(rows, self.weight, self.bias)
        low = self.scale * F.linear(rows, self.lora_A.flatten(0, 1))
        mix = F.linear(rows, self.lora_R).softmax(-1)
        if group is not None and self.by_modality:
            image = group.reshape(-1, 1) > 0
            mix = torch.cat([mix.masked_fill(image, 0), image.to(mix.dtype)], dim=-1)
        low = (low.unflatten(-1, (-1, self.rank)) * mix.unsqueeze(-1)).flatten(-2)
        y.addmm_(low.to(y.dtype), self.lora_B.transpose(0, 1).flatten(1).to(y.dtype).t())
        return y.view(*x.shape[:-1], self.out_features)


def adaptable(config: UniLlamaConfig, target: str, in_features: int, out_features: int, bias: bool) -> LoraLinear:
    """A linear layer with the low-rank updates that ``config`` gives ``target``, or none."""
    pairs, rank = config.num_lora_pairs(target), config.lora_rank
    if pairs and config.lora_kind != "plain":
        return MixedLoraLinear(config, in_features, out_features, bias)
    return LoraLinear(in_features, out_features, bias, pairs, rank, config.lora_alpha / max(1, rank))
