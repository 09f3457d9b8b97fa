"""Models whose weights moved a little from their base's, as fine-tuning moves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

Change = Callable[[dict[str, Tensor]], object]
MakeTuned = Callable[..., Path]
SHARE = 0.2


def moved(state: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """A weight in the decoder moves by ``SHARE`` of its norm, in all directions; embeddings in three rows."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, weight in sorted(state.items()):
        noise = torch.randn(weight.shape, generator=generator) if weight.is_floating_point() else weight
        if "vqmodel" in name or not weight.is_floating_point():
            out[name] = weight
        elif name.endswith("embed_tokens.weight"):
            out[name] = weight.clone()
            out[name][[1, 7, 9]] += noise[[1, 7, 9]] * weight.std()
        else:
            out[name] = weight + SHARE * noise * weight.norm() / noise.norm().clamp_min(1e-9)
    return out
