"""AdamW with float32 states, or with states of 8 bits (bitsandbytes, arXiv 2110.02861): made, read and restored.

In 8 bits a moment is stored as codes with one float32 scale per 256 weights; tensors of fewer than 4,096 weights keep float32. The
update itself is computed in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from unidecouple.extras import missing_package

BETAS = (0.9, 0.99)
MIN_8BIT_SIZE = 4096
"""Weights from which a tensor's states take 8 bits: bitsandbytes' default."""
BLOCK = 256
"""Weights per scale of an 8-bit state: bitsandbytes' own."""


def make_optimizer(name: str, groups: Sequence[Mapping[str, object]], weight_decay: float) -> torch.optim.Optimizer:
    """The optimizer ``RunConfig.optim`` names, over parameter groups.

    Raises:
        ValueError: bitsandbytes is not installed and ``name`` needs it.
    """
    if name != "adamw_8bit":
        return torch.optim.AdamW([dict(group) for group in groups], betas=BETAS, weight_decay=weight_decay, fused=True)
    try:
        from bitsandbytes.optim.adamw import AdamW8bit
    except ImportError as error:
        raise missing_package(f"optim={name}", "quantized", error) from error
    made = AdamW8bit([dict(group) for group in groups], betas=BETAS, weight_decay=weight_decay, min_8bit_size=MIN_8BIT_SIZE)
    return cast(torch.optim.Optimizer, made)


def optimizer_bytes(name: str, sizes: Iterable[int]) -> int:
    """Bytes of the states of tensors with ``sizes`` weights."""
    if name != "adamw_8bit":
        return sum(8 * size + 4 for size in sizes)
    return sum(8 * size if size < MIN_8BIT_SIZE else 2 * (size + 4 * -(-size // BLOCK)) for size in sizes)


def fresh_state(optimizer: torch.optim.Optimizer, group: int, index: int) -> dict[str, Tensor]:
    """Give the parameter ``index`` of a group the state that it has before its first step, and return what is saved of it."""
    parameter: nn.Parameter = optimizer.param_groups[group]["params"][index]
    if isinstance(optimizer, torch.optim.AdamW):
        step = torch.zeros((), device=parameter.device)
        optimizer.state[parameter] = {
            "step": step,
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    else:
        cast(Any, optimizer).init_state(optimizer.param_groups[group], parameter, group, index)
    return saved_state(optimizer.state[parameter])


def saved_state(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """What is saved of a parameter's state: not the codebooks of 8 bits, which all parameters share; a count as a tensor."""
    return {
        key: value if isinstance(value, Tensor) else torch.tensor(float(value))
        for key, value in state.items()
        if not key.startswith("qmap")
    }


def set_step_counts(optimizer: torch.optim.Optimizer, loaded: Mapping[str, Tensor]) -> None:
    """Set the counts of steps that an optimizer keeps as numbers, from ``loaded`` (name|key)."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            state = optimizer.state.get(parameter, {})
            if isinstance(state.get("step"), int):
                state["step"] = int(loaded[f"{name}|step"].item())


def first_moment(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> Tensor | None:
    """AdamW's first moment of ``weight``; None before its first step."""
    state = optimizer.state.get(weight, {})
    if "state1" not in state:
        return cast(Tensor | None, state.get("exp_avg"))
    moment: Tensor = state["state1"]
    if moment.dtype != torch.uint8:
        return moment
    from bitsandbytes.functional import dequantize_blockwise

    return dequantize_blockwise(moment, absmax=state["absmax1"], code=state["qmap1"], blocksize=BLOCK)
