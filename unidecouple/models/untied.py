"""Layers with one set of weights per group of tokens, stacked group-major; group ids are given as input.

Every set stays in the graph for every batch, since sharded and data-parallel training need a gradient of zero, not None.
Shapes: B batch, T tokens per row, N = B T, G groups, H hidden size, W any width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.models.deltas import FullDelta, of_tasks
from unidecouple.models.experts import RowCounts, grouped_linear, inverse
from unidecouple.models.lora import LoraLinear


@dataclass(frozen=True)
class SortedTokens:
    """Tokens sorted by group.

    Attributes:
        shape: (B, T).
        group: (N,) int64, ascending.
        order: (N,) int64, the token at each place.
        inverse: (N,) int64, the place of each token.
        counts: tokens of each group.
    """

    shape: torch.Size
    group: Tensor
    order: Tensor
    inverse: Tensor
    counts: RowCounts

    @classmethod
    def of(cls, group: Tensor, num_sets: int) -> SortedTokens:
        """Sort the tokens by ``group``, (B, T) int64 below ``num_sets``."""
        sorted_group, order = group.flatten().sort(stable=True)
        return cls(group.shape, sorted_group, order, inverse(order), RowCounts.of(sorted_group, num_sets))

    def rows(self, x: Tensor) -> Tensor:
        """Sort ``x`` (B, T, W) into rows (N, W)."""
        return x.flatten(0, 1).index_select(0, self.order)

    def back(self, rows: Tensor) -> Tensor:
        """Bring sorted ``rows`` (N, W) back to (B, T, W)."""
        return rows.index_select(0, self.inverse).unflatten(0, self.shape)


class UntiedLinear(nn.Module):
    """``y = W_g x + b_g``: one matrix (and bias) per group g.

    Args:
        num_sets: G.
        in_features, out_features, bias: as of ``nn.Linear``.
        backend: see ``Experts``.
    """

    def __init__(self, num_sets: int, in_features: int, out_features: int, bias: bool, backend: str) -> None:
        super().__init__()
        self.num_sets, self.backend = num_sets, backend
        self.weight = nn.Parameter(torch.empty(num_sets, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(num_sets, out_features)) if bias else None
        self.reset()

    def reset(self, std: float = 0.02) -> None:
        """Initialise the weights at random with ``std`` and the bias with zero."""
        nn.init.normal_(self.weight, std=std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, rows: Tensor, tokens: SortedTokens) -> Tensor:
        """Map sorted rows (N, in) to sorted rows (N, out)."""
        y = grouped_linear(rows, self.weight, tokens.counts, self.backend)
        return y if self.bias is None else y + F.embedding(tokens.group, self.bias).to(y.dtype)


def project(
    layers: Sequence[LoraLinear | UntiedLinear], x: Tensor, group: Tensor | None, tokens: SortedTokens | None
) -> list[Tensor]:
    """Apply each of ``layers`` to ``x`` (B, T, in); the layers are either all shared or all per group.

    Shared layers select their LoRA pair by ``group`` (B, T). Layers per group need ``tokens`` and use one sorted copy of ``x``.
    """
    untied = [layer for layer in layers if isinstance(layer, UntiedLinear)]
    if not untied:
        return [layer(x, group) for layer in layers]
    assert tokens is not None
    rows = tokens.rows(x)
    return [tokens.back(layer(rows, tokens)) for layer in untied]


class UntiedFeedForward(nn.Module):
    """Llama's SwiGLU FFN with one set of weights per group."""

    def __init__(self, config: UniLlamaConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.num_sets = config.num_tasks
        self.gate_proj = UntiedLinear(self.num_sets, hidden, inner, bias, config.experts_backend)
        self.up_proj = UntiedLinear(self.num_sets, hidden, inner, bias, config.experts_backend)
        self.down_proj = UntiedLinear(self.num_sets, inner, hidden, bias, config.experts_backend)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor, tokens: SortedTokens) -> Tensor:
        """Map ``x`` (B, T, H) to (B, T, H); ``tokens`` are its tokens sorted by group."""
        rows = tokens.rows(x)
        inner = self.act_fn(self.gate_proj(rows, tokens)) * self.up_proj(rows, tokens)
        return tokens.back(self.down_proj(inner, tokens))


class UniRMSNorm(LlamaRMSNorm):
    """Llama's RMSNorm with one scale (H,), or one per group (G, H), or one and replacements for single tasks (``deltas.py``)."""

    def __init__(self, hidden_size: int, eps: float, num_sets: int) -> None:
        super().__init__(hidden_size, eps)
        self.num_sets = num_sets
        self.deltas = nn.ModuleDict()
        if num_sets > 1:
            self.weight = nn.Parameter(torch.ones(num_sets, hidden_size))

    def forward(self, hidden_states: Tensor, group: Tensor | None = None) -> Tensor:
        """Map (B, T, H) to (B, T, H); a scale per group or task needs ``group`` (B, T) int64."""
        if self.num_sets == 1 and not self.deltas:
            return super().forward(hidden_states)
        assert group is not None
        weight = self.weight if self.num_sets == 1 else F.embedding(group, self.weight)
        for delta, mine in of_tasks(self.deltas, group):
            assert isinstance(delta, FullDelta)
            weight = torch.where(mine, delta.weight, weight)
        wide = hidden_states.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.variance_epsilon)
        return weight * normed.to(hidden_states.dtype)


def within_group(mask: Tensor, group_ids: Tensor | None, cache: Cache | None, config: UniLlamaConfig) -> Tensor:
    """Restrict ``mask`` (B, 1, T, S) to keys in the group of the query.

    The groups (B, T) of new tokens are appended to those of earlier tokens, stored in the cache after the layers' keys and values.
    (transformers' own ``and_mask_function`` counts packed tokens from their sequence's start, so it cannot look them up in a row.)

    Raises:
        ValueError: the attention kernel does not support masks.
    """
    assert group_ids is not None
    if "flash" in (config._attn_implementation or ""):
        raise ValueError(
            "per_group_attention='group' needs a mask, which flash attention does not take: use attn_implementation='sdpa'"
        )
    groups, slot = group_ids, config.num_hidden_layers
    if cache is not None:
        if len(cache.layers) == slot:
            cache.layers.append(copy.deepcopy(cache.layers[0]))  # still empty: this comes before layer 0
        groups = cache.update(group_ids[:, None, :, None], group_ids[:, None, :, None], slot)[0][:, 0, :, 0]
    same = (group_ids.unsqueeze(-1) == groups.unsqueeze(-2)).unsqueeze(1)
    return mask & same if mask.dtype == torch.bool else mask.masked_fill(~same, torch.finfo(mask.dtype).min)
