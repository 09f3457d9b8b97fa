"""Sparse upcycling (arXiv 2212.05055): every expert starts as a copy of the dense FFN, so the model computes what it did."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

import torch
from torch import Tensor

_DENSE_FFN = re.compile(r"^(?P<mlp>.*\.layers\.(?P<layer>\d+)\.mlp)\.(?P<part>gate|up|down)_proj\.weight$")


def copy_into_experts(
    state: Mapping[str, Tensor],
    num_experts: int,
    shared_experts: int,
    alpha: float,
    layers: Container[int] | None = None,
    shared_down: float = 1.0,
) -> dict[str, Tensor]:
    """Replace each dense FFN of ``state`` by ``num_experts`` stacked copies and, if asked, a shared copy.

    With a shared expert the output would double, so that routed + alpha * shared = dense the routed copies' ``W_down`` is
    scaled by 1 - alpha * shared_down. Router weights are new and not in the result; they do not matter at the start, since
    experts are equal.

    Args:
        state: dense weights by name.
        num_experts: E, over all groups.
        shared_experts: 0, 1 (a plain FFN), or one per group, stacked, each with an alpha.
        alpha: its weight at the start.
        layers: which layers, counted from 0; None is all.
        shared_down: factor on the shared copy's ``W_down``.

    Raises:
        ValueError: ``state`` has no dense FFN (it was upcycled before), or only part of one.
    """
    out: dict[str, Tensor] = {}
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        match = _DENSE_FFN.match(name)
        if match is None or (layers is not None and int(match["layer"]) not in layers):
            out[name] = tensor
        else:
            found.setdefault(match["mlp"], {})[match["part"]] = tensor
    stacked = any(tensor.ndim > 2 for part in found.values() for tensor in part.values())
    if not found or stacked or any(".mlp.experts." in name for name in state):
        raise ValueError("no dense FFN to upcycle (…layers.N.mlp.gate_proj.weight): start from a dense checkpoint")
    for mlp, part in found.items():
        missing = {"gate", "up", "down"} - part.keys()
        if missing:
            raise ValueError(f"{mlp} lacks {', '.join(sorted(missing))}: the dense checkpoint is incomplete")
        routed = 1 - alpha * shared_down if shared_experts else 1.0
        out[f"{mlp}.experts.gate_up_proj"] = torch.cat([part["gate"], part["up"]]).repeat(num_experts, 1, 1)
        out[f"{mlp}.experts.down_proj"] = (part["down"] * routed).repeat(num_experts, 1, 1)
        if shared_experts:
            out |= _shared(f"{mlp}.shared_expert", part | {"down": part["down"] * shared_down}, shared_experts)
            out[f"{mlp}.alpha"] = torch.full((int(shared_experts),), alpha, dtype=part["down"].dtype)
    return out


def _shared(name: str, part: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Weights of a shared expert called ``name``: a plain FFN, or ``count`` stacked ones."""
    if count == 1:
        return {f"{name}.{key}_proj.weight": tensor for key, tensor in part.items()}
    both = torch.cat([part["gate"], part["up"]])
    return {f"{name}.gate_up_proj": both.repeat(count, 1, 1), f"{name}.down_proj": part["down"].repeat(count, 1, 1)}


def keep_dense(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a dense model as they are.

    Raises:
        ValueError: ``state`` has experts, weights per group, or low-rank updates already.
    """
    for name, tensor in state.items():
        stacked = tensor.ndim > 2 and ".layers." in name and name.endswith("_proj.weight")
        if stacked or ".mlp.experts." in name or "lora_" in name:
            raise ValueError(f"{name} is no weight of a dense model: start from a dense checkpoint")
    return dict(state)
