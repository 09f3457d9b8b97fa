"""Prompts as a batch: within the model's length, left-padded so that they end together, with positions that follow the mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_length(tokens: int, new: int, longest: int) -> None:
    """Refuse a prompt that leaves no room for what is to be generated; nothing is ever cut off.

    Args:
        tokens: of the prompt, images among them.
        new: tokens to be generated.
        longest: most tokens of a sequence.

    Raises:
        ValueError: with all three numbers.
    """
    if tokens + new > longest:
        raise ValueError(
            f"{tokens} tokens of prompt and {new} to generate are more than {longest}: shorten the prompt, or ask for fewer"
        )


def left_pad(rows: Sequence[list[int]], pad_token_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both (B, longest) int64, padding on the left."""
    longest = max(map(len, rows))
    ids = [[pad_token_id] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def positions(mask: Tensor) -> Tensor:
    """Position of each token among the real ones: (B, T) mask -> (B, T), zero on padding."""
    return (mask.cumsum(-1) - 1).clamp_min(0)
