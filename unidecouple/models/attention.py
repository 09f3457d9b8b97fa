"""How attention kernels are called: packed rows by blocks of sequences instead of a mask, and masks without cuDNN.

Shapes: B rows, T tokens per row, S sequences, D width of a head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from unidecouple.batch import to_device

Attend = Callable[..., tuple[Tensor, Tensor | None]]
"""One of transformers' attention functions."""

_MASKED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def masked_kernels(device: torch.device, mask: Tensor | None) -> contextlib.AbstractContextManager[object]:
    """Context of an attention call: with a mask on a GPU, all kernels but cuDNN's.

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
