"""What structures share that untie whole layers: the fields they set, which layers a share of the depth is, exact upcycling."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unidecouple.models.groups import LAYER_PARTS

GROUPS = 2
_LAYER = re.compile(
    r"^model\.language_model\.layers\.(?P<layer>\d+)\."
    r"(?:(?P<attention>self_attn\.[qkvo]_proj\.(?:weight|bias))|(?P<ffn>mlp\.(?:gate|up|down)_proj\.(?:weight|bias))"
    r"|(?P<norms>\w+_layernorm\.weight))$"
)
_FINAL_NORM = "model.language_model.norm.weight"


def untied(
    layers: Collection[int], group_by: str, norm: bool, attention: str = "all", parts: Sequence[str] = LAYER_PARTS
) -> dict[str, Any]:
    """Fields of the text configuration that untie ``parts`` of ``layers`` and, if ``norm``, the final norm."""
    fields = {"ffn": "dense", "moe_layers": None, "per_group_layers": sorted(layers), "group_by": group_by}
    return {**fields, "per_group_parts": list(parts), "per_group_norm": norm, "per_group_attention": attention}


def depth_of(share: float, layers: int) -> int:
    """How many of ``layers`` layers ``share`` is: a whole number is itself, a fraction is rounded."""
    return share if isinstance(share, int) else round(share * layers)


def copy_into_sets(
    state: Mapping[str, Tensor], layers: Collection[int], norm: bool, parts: Collection[str] = LAYER_PARTS
) -> dict[str, Tensor]:
    """Stack copies of the weights of ``layers``, one per group; where attention stays the same, so does what the model computes.

    Args:
        state: dense weights by name, or some of them.
        layers: which layers, counted from 0.
        norm: whether the final norm is among them.
        parts: which of their weights, of ``LAYER_PARTS``.

    Raises:
        ValueError: ``state`` was upcycled before.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = _LAYER.match(name)
        if ".mlp.experts." in name or (match and tensor.ndim > (2 if name.endswith("_proj.weight") else 1)):
            raise ValueError(f"{name} is no weight of a dense model: start from a dense checkpoint")
        mine = int(match["layer"]) in layers and match.lastgroup in parts if match else norm and name == _FINAL_NORM
        out[name] = torch.stack([tensor] * GROUPS) if mine else tensor
    return out
