"""Where PEFT keeps what are low-rank updates of ours: stacks are (E r, in) and (out, r E) there, experts fastest in the second.

Where experts are modules, gate and up have an update each, with an A of their own; ours share A.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

STACKS = ("gate_up", "down")
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


@torch.no_grad()
def fill(wrapped: nn.Module, own: Mapping[str, Tensor]) -> None:
    """Give PEFT's adapter the values of our updates ``own``, by our names."""
    for name, weight in wrapped.named_parameters():
        if weight.requires_grad:
            weight.copy_(_of_ours(name, own, weight.shape))


def _of_ours(name: str, own: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
    """Our update that PEFT calls ``name``, in PEFT's ``shape``."""
    part = "lora_A" if ".lora_A." in name else "lora_B"
    if match := re.search(r"members\.(\d+)\.(\w+)_proj", name):
        number, projection = int(match[1]), match[2]
        matrix = own[f"experts.{'down' if projection == 'down' else 'gate_up'}_{part}"][number]
        return matrix if matrix.shape == shape else matrix.chunk(2)[projection == "up"]
    if match := re.search(r"shared_expert\.\w+_proj", name):
        return own[f"{match[0]}.{part}"].squeeze(0)
    stack = STACKS[0] if ".base_layer." in name else STACKS[1]  # PEFT wraps one parameter after the other
    matrices = own[f"experts.{stack}_{part}"]
    return matrices.reshape(shape) if part == "lora_A" else matrices.permute(1, 2, 0).reshape(shape)


def gradients(wrapped: nn.Module, experts: int) -> dict[str, Tensor]:
    """The gradients of PEFT's adapter by our names, in our shapes."""
    found = {name: weight.grad for name, weight in wrapped.named_parameters() if weight.grad is not None}
    model = "base_model.model"
    out: dict[str, Tensor] = {}
    for part in ("lora_A", "lora_B"):
        for projection in PROJECTIONS:
            name = f"shared_expert.{projection}"
            out[f"{name}.{part}"] = found[f"{model}.{name}.{part}.default.weight"].unsqueeze(0)
        for stack in STACKS:
            inner = ".base_layer" if stack == STACKS[0] else ""
            whole = found.get(f"{model}.experts{inner}.{part}.default.weight")
            if whole is None:
                members = [f"{model}.experts.members.{number}" for number in range(experts)]
                out[f"experts.{stack}_{part}"] = torch.stack([_of_member(found, member, stack, part) for member in members])
            elif part == "lora_A":
                out[f"experts.{stack}_{part}"] = whole.unflatten(0, (experts, -1))
            else:
                out[f"experts.{stack}_{part}"] = whole.unflatten(1, (-1, experts)).permute(2, 0, 1)
    return out


def _of_member(found: Mapping[str, Tensor], member: str, stack: str, part: str) -> Tensor:
    down, gate, up = (found[f"{member}.{projection}_proj.{part}.default.weight"] for projection in ("down", "gate", "up"))
    if stack == "down":
        return down
    return gate + up if part == "lora_A" else torch.cat([gate, up])
