"""Left padding: prompts of different lengths end together, and positions follow the mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def left_pad(rows: Sequence[list[int]], pad_token_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both (B, longest) int64, padding on the left."""
    longest = max(map(len, rows))
    ids = [[pad_token_id] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def positions(mask: Tensor) -> Tensor:
    """Position of each token among the real ones: (B, T) mask -> (B, T), zero on padding."""
    return (mask.cumsum(-1) - 1).clamp_min(0)
