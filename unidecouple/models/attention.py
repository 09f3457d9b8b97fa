"""Attention of the decoder: packed rows by blocks of sequences instead of a mask, and masks without cuDNN's kernel.

Shapes: B rows, T tokens per row, S sequences, D width of a head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb, eager_attention_forward

from unidecouple.batch import to_device
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.models.interaction import attend_and_measure
from unidecouple.models.lora import adaptable
from unidecouple.models.untied import SortedTokens, UntiedLinear, project

Attend = Callable[..., tuple[Tensor, Tensor | None]]
"""One of transformers' attention functions."""

_MASKED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def masked_kernels(device: torch.device, mask: Tensor | None) -> contextlib.AbstractContextManager[object]:
    """Return the context of an attention call: with a mask on a GPU, all kernels but cuDNN's.

    Since torch 2.11 that one gives NaN gradients with a mask where the length is 64 modulo 128 (pytorch #196678, H100 and H200).
    """
    return sdpa_kernel(_MASKED) if mask is not None and device.type == "cuda" else contextlib.nullcontext()


@dataclass(frozen=True)
class SequenceBlocks:
    """The sequences of packed rows, laid out in padded blocks of similar lengths.

    Attention over them is causal without a mask, so fused kernels apply, and it costs no more than in padded rows. A mask over a
    packed row costs the square of the row's length: 15 times as much for 12 sequences of 640 tokens.

    Attributes:
        places: per block, (S, longest) int64 place (row * T + column) of each token; past a sequence's end, of its last token.
        inverse: (B T,) int64, where each token stands in the blocks, one after the other.
    """

    places: tuple[Tensor, ...]
    inverse: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> SequenceBlocks:
        """By the ``lengths`` of all sequences, row by row; a block's longest is less than twice as long as its shortest."""
        length = torch.tensor(lengths)
        start, order = length.cumsum(0) - length, length.argsort(descending=True, stable=True)
        inverse = torch.empty(int(length.sum()), dtype=torch.long)
        places, begin, slots = [], 0, 0
        while begin < len(order):
            longest = int(length[order[begin]])
            chosen = order[begin:][length[order[begin:]] > longest // 2]
            column, last = torch.arange(longest), length[chosen, None] - 1
            block = start[chosen, None] + column.minimum(last)
            inverse[block[column <= last]] = slots + (column <= last).flatten().nonzero().squeeze(1)
            places.append(to_device(block, device))
            begin, slots = begin + len(chosen), slots + block.numel()
        return cls(tuple(places), to_device(inverse, device))


def attend_in_blocks(attend: Attend, blocks: SequenceBlocks) -> Attend:
    """``attend`` for packed rows: it is called per block, causally and without a mask, and returns no attention weights."""

    def attend_packed(
        module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
    ) -> tuple[Tensor, None]:
        tokens = [part.transpose(1, 2).flatten(0, 1) for part in (query, key, value)]
        mixed = []
        for places in blocks.places:
            parts = (part.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2) for part in tokens)
            mixed.append(attend(module, *parts, None, **settings)[0].flatten(0, 1))
        together = mixed[0] if len(mixed) == 1 else torch.cat(mixed)
        return together.index_select(0, blocks.inverse).unflatten(0, (query.shape[0], query.shape[2])), None

    return attend_packed


class UniLlamaAttention(LlamaAttention):
    """Llama attention whose projections may have LoRA, shared or one pair per group, or one set of weights per group."""

    def __init__(self, config: UniLlamaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            plain: nn.Linear = getattr(self, name)
            shape = (plain.in_features, plain.out_features, plain.bias is not None)
            sets = config.num_weight_sets(layer_idx, "attention")
            linear = adaptable(config, "attention", *shape) if sets == 1 else UntiedLinear(sets, *shape, config.experts_backend)
            setattr(self, name, linear)
        if config.bos_kv:
            self.first_key = nn.Parameter(torch.zeros(self.k_proj.out_features))
            self.first_value = nn.Parameter(torch.zeros(self.v_proj.out_features))

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        group: Tensor | None = None,
        first: Tensor | None = None,
        key_sets: Tensor | None = None,
        tokens: SortedTokens | None = None,
        blocks: SequenceBlocks | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Attend as ``LlamaAttention``; ``group`` (B, T) chooses each token's low-rank pair, ``tokens`` its set of weights.

        Without a mask, ``blocks`` keep the sequences of packed rows apart.

        ``first`` (B, T) bool marks first tokens, whose keys and values are stored; at position 0 the rotation changes nothing.
        ``key_sets`` (B, T, sets) adds a third result: the attention given to each set, see ``attend_and_measure``.
        """
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = project((self.q_proj, self.k_proj, self.v_proj), hidden_states, group, tokens)
        if first is not None:
            key, value = (
                torch.where(first.unsqueeze(-1), kept, made) for kept, made in ((self.first_key, key), (self.first_value, value))
            )
        query, key, value = (part.view(heads).transpose(1, 2) for part in (query, key, value))
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        if blocks is not None and attention_mask is None:
            attend = attend_in_blocks(attend, blocks)
        settings = {"dropout": self.attention_dropout if self.training else 0.0, "scaling": self.scaling, **kwargs}
        shares = None
        with masked_kernels(query.device, attention_mask):
            if key_sets is None:
                mixed, weights = attend(self, query, key, value, attention_mask, **settings)
            else:
                mixed, weights, shares = attend_and_measure(attend, self, query, key, value, attention_mask, key_sets, **settings)
        return project((self.o_proj,), mixed.flatten(-2), group, tokens)[0], weights, shares
