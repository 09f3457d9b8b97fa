"""Adapters that PEFT itself wrote: its LoRA updates read under its names, then merged or kept as low-rank weights of our own.

PEFT names modules as the model does that it trained, transformers' Janus (whose names are ours) or Emu3, or one of ours. What its
configuration asks for beyond ``W + scale B A`` and whole modules is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from unidecouple.adapters.record import CONFIG, WEIGHTS
from unidecouple.convert.emu3 import read_names
from unidecouple.convert.json_files import check_configs, read_json
from unidecouple.convert.weights import check_finite
from unidecouple.inputs import refuse_pointer
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.models.emu3 import UniEmu3Config
from unidecouple.models.families import UnifiedConfig

_PREFIX = "base_model.model."
_PAIR = re.compile(r"^(?P<module>.+?)(?:\.base_layer)*\.lora_(?:(?P<which>[AB])\.weight|embedding_(?P<embedded>[AB]))$")
_KNOWN = {
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "peft_version", "auto_mapping", "inference_mode"),
    *("r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights"),
    *("target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("megatron_core", "qalora_group_size", "eva_config", "runtime_config", "ensure_weight_tying"),
}
"""Fields of PEFT's ``LoraConfig`` (0.21) that the updates' form does not depend on, or that are read here."""

_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Of ``init_lora_weights``; others (PiSSA, OLoRA, CorDA, LoftQ, …) change the base's weights too, which are not in the folder."""

_TARGETS = {
    "attention": re.compile(r"^model\.language_model\.layers\.\d+\.self_attn\.[qkvo]_proj\.weight$"),
    "mlp": re.compile(r"^model\.language_model\.layers\.\d+\.mlp\.(?:gate|up|down)_proj\.weight$"),
    "shared_expert": re.compile(r"^model\.language_model\.layers\.\d+\.mlp\.shared_expert\.(?:gate|up|down)_proj\.weight$"),
    "experts": re.compile(r"^model\.language_model\.layers\.\d+\.mlp\.experts\.(?:gate_up|down)_proj$"),
}


@dataclass(frozen=True)
class Update:
    """A low-rank update of one weight: ``W + b @ a``; both have a first dimension more where W is a stack.

    Attributes:
        a: (r, in) or (E, r, in).
        b: (out, r) or (E, out, r), scaled.
    """

    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class PeftAdapter:
    """What an adapter's folder holds.

    Attributes:
        base: name of the base that PEFT recorded; "" where it recorded none.
        updates: by our name of the weight.
        replaced: weights of modules that were trained in full, by our name.
    """

    base: str
    updates: Mapping[str, Update]
    replaced: Mapping[str, Tensor]


def read_peft(folder: Path, config: UnifiedConfig, weights: Mapping[str, Tensor]) -> PeftAdapter:
    """The adapter in ``folder`` for a base of ``config`` with ``weights`` (shapes are enough).

    Raises:
        ValueError: it is no LoRA, has a part that this package has no form for, fits another base, or is damaged.
    """
    check_configs(folder)
    raw = read_json(folder / CONFIG)
    _check_kind(folder / CONFIG, raw)
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in _tensors(folder / WEIGHTS).items()}
    pairs: dict[str, dict[str, Tensor]] = {}
    replaced: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = _PAIR.match(name)
        if match is None:
            ours = _ours(name.replace(".base_layer.", "."), config)
            if ours not in weights or weights[ours].shape != tensor.shape:
                raise ValueError(f"{folder / WEIGHTS} has {name} of shape {tuple(tensor.shape)}, which the base does not have")
            replaced[ours] = tensor
        elif match["embedded"]:  # (r, rows) and (width, r) update a table (rows, width): transposed, they are B and A
            pairs.setdefault(name[: match.end("module")], {})["BA"["AB".index(match["embedded"])]] = tensor.T
        else:
            pairs.setdefault(name.removesuffix(f".lora_{match['which']}.weight"), {})[match["which"]] = tensor
    updates = {}
    for module, pair in pairs.items():
        ours, update = _update(folder / WEIGHTS, module, pair, raw, config, weights)
        updates[ours] = update
    return PeftAdapter(str(raw.get("base_model_name_or_path") or ""), updates, replaced)


def merged(adapter: PeftAdapter, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with all updates added, in float64 and rounded once to each weight's type."""
    out = {**state, **{name: tensor.to(state[name].dtype) for name, tensor in adapter.replaced.items()}}
    for name, update in adapter.updates.items():
        out[name] = (out[name].double() + update.b.double() @ update.a.double()).to(out[name].dtype)
    return out


def unmerged(adapter: PeftAdapter, text: UniLlamaConfig) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fields of the text configuration, and low-rank weights, that hold the updates unmerged.

    All pairs get one rank, a multiple of 8, by zeros; weights of a target that PEFT left alone get pairs of zeros when they are
    loaded. The scale is in B.

    Raises:
        ValueError: the base has low-rank updates already, or a weight is updated that takes none here.
    """
    if text.lora_rank:
        raise ValueError(f"the base has low-rank updates (r={text.lora_rank}) already: leave out --unmerged, or merge them first")
    found: dict[str, str] = {}
    for name in adapter.updates:
        target = next((target for target, pattern in _TARGETS.items() if pattern.match(name)), None)
        if target is None or target not in text.adaptable or text.per_group_layers is not None:
            raise ValueError(f"{name} takes no low-rank update in this structure: leave out --unmerged, and it is merged")
        found[name] = target
    rank = -(-max((update.a.shape[-2] for update in adapter.updates.values()), default=1) // 8) * 8
    out = {}
    for name, update in adapter.updates.items():
        a, b = update.a, update.b
        stacked = found[name] == "experts"
        a, b = (a, b) if stacked else (a[None], b[None])
        start = f"{name.removesuffix('_proj')}_lora" if stacked else f"{name.removesuffix('.weight')}.lora"
        out[f"{start}_A"] = torch.cat([a, a.new_zeros(len(a), rank - a.shape[1], a.shape[2])], dim=1)
        out[f"{start}_B"] = torch.cat([b, b.new_zeros(len(b), b.shape[1], rank - b.shape[2])], dim=2)
    fields = {"lora_rank": rank, "lora_alpha": float(rank), "lora_targets": sorted(set(found.values())), "lora_per_task": []}
    return fields, out


def _check_kind(path: Path, raw: Mapping[str, Any]) -> None:
    if raw.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type={raw.get('peft_type')!r}; adapters of type LORA can be loaded")
    if raw.get("init_lora_weights") not in _PLAIN_STARTS:
        raise ValueError(
            f"{path}: init_lora_weights={raw['init_lora_weights']!r} changed the base's weights as well: save the adapter with "
            "PEFT's path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )
    for key, value in raw.items():
        if key not in _KNOWN and value and not (key == "bias" and value == "none"):
            raise ValueError(f"{path}: {key}={value!r} has no form here: merge it with PEFT (merge_and_unload)")


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: have PEFT save the adapter in safetensors (safe_serialization=True)")
    refuse_pointer(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except Exception as error:  # safetensors has its own, and OSError
        raise ValueError(f"cannot read {path}: {error}. Is it truncated? Copy it again") from error
    check_finite(tensors, str(path))
    return tensors


def _update(
    path: Path,
    module: str,
    pair: Mapping[str, Tensor],
    raw: Mapping[str, Any],
    config: UnifiedConfig,
    weights: Mapping[str, Tensor],
) -> tuple[str, Update]:
    """The weight of ``module`` that a pair belongs to, by its shape, and the update."""
    if pair.keys() != {"A", "B"} or any(tensor.ndim != 2 for tensor in pair.values()):
        shapes = {which: tuple(tensor.shape) for which, tensor in pair.items()}
        raise ValueError(f"{path}: {module} has {shapes}, and matrices A and B are needed: other layers take no update")
    bare = module.replace(".base_layer", "")
    start = _ours(f"{bare}.weight", config).removesuffix("weight")
    candidates = [name for name in weights if name.startswith(start) and "." not in name.removeprefix(start)]
    for name in candidates:
        update = _fitted(weights[name], pair["A"], pair["B"])
        if update is not None:
            leaf = name.removeprefix(start)
            scale = _scale(raw, bare if leaf == "weight" else f"{bare}.{leaf}", update.a.shape[-2])
            return name, Update(update.a, update.b * scale)
    a, b = (tuple(pair[which].shape) for which in "AB")
    raise ValueError(f"{path} updates {module} with A {a} and B {b}, for which the base has no weight: is it another model's?")


def _fitted(weight: Tensor, a: Tensor, b: Tensor) -> Update | None:
    """The pair in the form of ``weight``, which may be a stack; None if it does not fit."""
    shape: tuple[int, ...] = tuple(weight.shape) if weight.ndim > 1 else (0, 0)
    *stack, outer, inner = shape
    if len(stack) > 1 or (b.shape[0], a.shape[1]) != (outer, inner) or a.shape[0] != b.shape[1] or not len(a):
        return None
    if not stack:
        return Update(a, b)
    if len(a) % stack[0]:
        return None
    return Update(a.unflatten(0, (stack[0], -1)), b.unflatten(1, (-1, stack[0])).permute(2, 0, 1))


def _scale(raw: Mapping[str, Any], module: str, rank: int) -> float:
    """``lora_alpha / r``, or rank-stabilised LoRA's ``lora_alpha / sqrt(r)``; a pattern may give a module its own alpha."""
    alphas = raw.get("alpha_pattern") or {}
    alpha = next((value for key, value in alphas.items() if re.match(rf"(.*\.)?({key})$", module)), raw.get("lora_alpha", 8))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ValueError(f"{CONFIG}: lora_alpha={alpha!r} of {module} is no number")
    return alpha / math.sqrt(rank) if raw.get("use_rslora") else alpha / rank


def _ours(name: str, config: UnifiedConfig) -> str:
    return next(iter(read_names({name: torch.empty(0)}))) if isinstance(config, UniEmu3Config) else name
