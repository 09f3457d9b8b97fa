"""Low-rank updates under PEFT's names and shapes, and the other way round; both directions only move numbers.

PEFT (0.21) calls a linear layer's pair ``<layer>.lora_A.weight`` (r, in) and ``<layer>.lora_B.weight`` (out, r). Stacked experts go
through ``target_parameters``: A is (E r, in), expert after expert, but B is (out, r E) with the expert running fastest; the
first stack's wrapper lies inside the second's (``experts.base_layer``). Modules trained in full are ``modules_to_save``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from unidecouple.methods.selection import part_of
from unidecouple.models.configuration import UniLlamaConfig

_PREFIX = "base_model.model."
_STACKED = re.compile(r"^(?P<experts>.*\.(?:experts|shared_expert))\.(?P<stack>gate_up|down)_lora_(?P<which>[AB])$")
_PLAIN = re.compile(r"^(?P<layer>.*)\.lora_(?P<which>[ABR])$")
_INSIDE = {"gate_up": ".base_layer", "down": ""}
_LAYERS = {
    "attention": r"self_attn\.[qkvo]_proj",
    "mlp": r"mlp\.(?:gate|up|down)_proj",
    "shared_expert": r"mlp\.shared_expert\.(?:gate|up|down)_proj",
}


def is_lora(name: str) -> bool:
    """Whether ``name`` is a low-rank update's."""
    return bool(_STACKED.match(name) or _PLAIN.match(name))


def is_large(name: str) -> bool:
    """Whether ``name`` belongs to what makes a checkpoint big: the decoder's matrices, the vision tower, the image tokenizer."""
    big = ("attention", "ffn", "experts", "shared_expert", "image_tokenizer")
    return part_of(name) in big or name.startswith("model.vision_model.")


def to_peft(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names and shapes -> PEFT's."""
    return dict(_to_peft(name, tensor) for name, tensor in tensors.items())


def from_peft(tensors: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """PEFT's names and shapes -> ours; ``rank`` is r."""
    return dict(_from_peft(name.removeprefix(_PREFIX), tensor, rank) for name, tensor in tensors.items())


def lora_config(text: UniLlamaConfig, modules: Iterable[str]) -> dict[str, Any]:
    """Fields of PEFT's ``LoraConfig``; ``modules`` are those trained in full."""
    layers = "|".join(_LAYERS[target] for target in text.lora_targets if target in _LAYERS)
    stacks = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"] if "experts" in text.lora_targets else None
    return {
        "r": text.lora_rank,
        "lora_alpha": text.lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": rf"model\.language_model\.layers\.\d+\.(?:{layers})" if layers else [],  # not the vision tower's q_proj
        "target_parameters": stacks,
        "modules_to_save": list(modules) or None,
        "inference_mode": True,
    }


def modules_of(changed: Iterable[str]) -> list[str]:
    """The outermost modules that own the weights ``changed``, low-rank updates left out."""
    owners = {name.rpartition(".")[0] for name in changed if not is_lora(name)}
    return sorted(owner for owner in owners if not any(owner.startswith(f"{other}.") for other in owners))


def obstacles(text: UniLlamaConfig, start: UniLlamaConfig, changed: Iterable[str], every: Iterable[str]) -> list[str]:
    """Why PEFT cannot hold what training changed; empty where it can.

    Args:
        text: the checkpoint's.
        start: the base's.
        changed: names of the weights that training changed.
        every: all names of the checkpoint.
    """
    found = []
    routed = [target for target in text.lora_targets if target in text.lora_per_task]
    if start.ffn != text.ffn:
        found.append(f"the base is {start.ffn} and becomes {text.ffn} first, which PEFT does not know of")
    if start.lora_rank:
        found.append("the base has low-rank updates of its own, and PEFT would add to them")
    if not text.lora_rank:
        found.append("there are no low-rank updates")
    elif routed:
        found.append(f"updates of {', '.join(routed)} are routed by task, and PEFT has one pair for all tokens")
    if text.lora_kind != "plain":
        found.append(f"a router weighs several updates per token (lora_kind={text.lora_kind!r}), and PEFT has one pair")
    if text.shared_expert_per_task and "shared_expert" in text.lora_targets:
        found.append("shared experts per task are stacked, and PEFT's form of them is unknown here")
    if text.lora_rank and "router" in text.lora_targets:
        found.append("routers are no linear layers of PEFT's, which cannot update them")
    tight = [name for name in every if is_lora(name) or is_large(name)]
    for module in modules_of(changed):
        if any(name.startswith(f"{module}.") for name in tight):
            bare = next(name for name in changed if name.startswith(f"{module}.") and not is_lora(name))
            found.append(f"{bare} is no module of its own, and PEFT saves whole modules")
            break
    return found


def _to_peft(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    if match := _STACKED.match(name):
        packed = tensor.flatten(0, 1) if match["which"] == "A" else tensor.permute(1, 2, 0).flatten(1)
        return f"{_PREFIX}{match['experts']}{_INSIDE[match['stack']]}.lora_{match['which']}.weight", packed.contiguous()
    if _PLAIN.match(name):
        return f"{_PREFIX}{name}.weight", tensor[0].contiguous()
    return f"{_PREFIX}{name}", tensor


def _from_peft(name: str, tensor: Tensor, rank: int) -> tuple[str, Tensor]:
    ours = name.removesuffix(".weight")
    match = _PLAIN.match(ours)
    if match is None:
        return name, tensor
    layer, which = match["layer"], match["which"]
    for stack, inside in _INSIDE.items():
        if layer.endswith(f".experts{inside}"):
            a = tensor.unflatten(0, (-1, rank)) if which == "A" else tensor.unflatten(1, (rank, -1)).permute(2, 0, 1)
            return f"{layer.removesuffix('.base_layer')}.{stack}_lora_{which}", a.contiguous()
    return ours, tensor.unsqueeze(0)
