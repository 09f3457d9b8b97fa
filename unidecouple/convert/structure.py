"""Changes of structure, part by part: low-rank updates merged, dense to mixture, one task out of two, a mixture folded."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unidecouple.batch import Task
from unidecouple.convert.parts import Part
from unidecouple.methods.structure import Structure, Upcycled
from unidecouple.models.router import ExpertRouter, TaskAwareRouter

if TYPE_CHECKING:
    from unidecouple.models.configuration import UniLlamaConfig
    from unidecouple.models.families import UnifiedConfig

_FFN = re.compile(r"^(?P<mlp>model\.language_model\.layers\.(?P<layer>\d+)\.mlp)\.")
_SHARED = re.compile(r"^(?P<ffn>.*\.mlp\.shared_expert)\.(?P<layers>gate_up|down)_(?:proj|lora_(?P<which>[AB]))$")
_LAST = "model.language_model.norm.weight"
EMBEDDINGS, TEXT_HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"


def with_text(config: UnifiedConfig, **fields: Any) -> UnifiedConfig:
    """``config`` with fields of its text configuration changed."""
    raw = config.to_dict()
    raw["text_config"] = {**raw["text_config"], **fields}
    return type(config)(**raw)


def with_more_words(weights: Mapping[str, Tensor], rows: int, added: Sequence[int]) -> dict[str, Tensor]:
    """``weights`` with ``rows`` word embeddings and rows of the text head; those of ``added`` are the mean of the others."""
    out = dict(weights)
    for name in (EMBEDDINGS, TEXT_HEAD):
        table = weights[name]
        mean = table.float().mean(0).to(table.dtype)
        out[name] = torch.cat([table, mean.expand(max(0, rows - len(table)), -1)])
        out[name][list(added)] = mean
    return out


def with_structure(config: UnifiedConfig, structure: Structure) -> UnifiedConfig:
    """``config`` with ``structure``, as conversion, training, planning and adapters apply it.

    Raises:
        ValueError: the model has another structure already.
    """
    text = config.text_config
    if isinstance(structure, Upcycled) and text.task_deltas and structure.kind != "dense":
        raise ValueError(f"structure {structure.kind!r} needs one set of weights, and this model has weights per task: choose one")
    if isinstance(structure, Upcycled) and (text.per_group_layers is not None or text.ffn != "dense" != structure.kind):
        now = (
            f"ffn={text.ffn!r}"
            if text.per_group_layers is None
            else f"separate weights per {text.group_by} in layers {text.per_group_layers}"
        )
        raise ValueError(f"the model has {now}: structure {structure.kind!r} must start from a dense checkpoint")
    if isinstance(structure, Upcycled) and text.lora_rank and structure.kind != "dense":
        raise ValueError(
            f"the model has LoRA (r={text.lora_rank}): structure {structure.kind!r} must start from a dense checkpoint, "
            "so merge it first"
        )
    return with_text(config, **structure.configure(text))


def merge_lora(part: Part, text: UniLlamaConfig) -> Part:
    """Add every low-rank update to its weight, ``W + (lora_alpha / r) B A``, in float64 and rounded once to W's type.

    Raises:
        ValueError: an update routed by task; no single weight can hold two.
    """
    out = {name: tensor for name, tensor in part.items() if "lora_" not in name}
    for name, a in part.items():
        if not name.endswith("lora_A"):
            continue
        stacked = not name.endswith(".lora_A") or ".mlp.gate." in name
        if not stacked and len(a) > 1:
            raise ValueError(f"{name} has one LoRA per task, and only one can be merged: choose it with --task")
        base = name.replace("_lora_A", "_proj") if name.endswith("_lora_A") else name.replace("lora_A", "weight")
        update = part[name.replace("lora_A", "lora_B")].double() @ a.double() * (text.lora_alpha / text.lora_rank)
        out[base] = (part[base].double() + (update if stacked else update[0])).to(part[base].dtype)
    return {name: out[name] for name in part if name in out}


def merged_config(config: UnifiedConfig) -> UnifiedConfig:
    """Configuration after ``merge_lora``.

    Raises:
        ValueError: a router weighs the updates per token; no single weight can hold several.
    """
    if config.text_config.lora_kind != "plain":
        raise ValueError(
            f"lora_kind={config.text_config.lora_kind!r}: a router weighs the updates per token, so they merge into no weight; "
            "keep the unidecouple layout, and use what takes any model (evaluate, unidecouple.generate.image.draw, text.answer)"
        )
    return with_text(config, lora_rank=0, lora_targets=[], lora_per_task=[])


def slim(part: Part, task: Task) -> Part:
    """Keep the experts, expert router and low-rank updates of ``task``; drop those of the other task.

    Of shared experts per task, its own becomes a plain one.
    """
    out: Part = {}
    for name, tensor in part.items():
        if ".mlp.router." in name or ".context_router." in name:
            continue
        if match := _SHARED.match(name):
            out |= _plain_ffn(match, tensor[task])
        elif ".experts." in name:
            out[name] = tensor.unflatten(0, (len(Task), -1))[task].clone()
        elif tensor.shape[:1] == (len(Task),) and ("lora_" in name or name.endswith((".mlp.gate.weight", ".mlp.alpha"))):
            out[name] = tensor[task : task + 1].clone()
        else:
            out[name] = tensor
    return out


def _plain_ffn(stacked: re.Match[str], tensor: Tensor) -> Part:
    """One of a stack of FFNs, under the names of a plain one; gates and ups share the A of their low-rank update."""
    layers = stacked["layers"].split("_")
    pieces = [tensor] * len(layers) if stacked["which"] == "A" else tensor.chunk(len(layers))
    leaf = f"lora_{stacked['which']}" if stacked["which"] else "weight"
    shaped = (piece.unsqueeze(0) if stacked["which"] else piece for piece in pieces)
    return {f"{stacked['ffn']}.{layer}_proj.{leaf}": piece.clone() for layer, piece in zip(layers, shaped, strict=True)}


def slim_config(config: UnifiedConfig, task: Task) -> UnifiedConfig:
    """Configuration of a model slimmed to ``task``.

    Raises:
        ValueError: nothing in it belongs to a task.
    """
    text = config.text_config
    if text.ffn == "typed_moe":
        raise ValueError(
            f"ffn='typed_moe', group_by={text.group_by!r}: each task uses several groups of experts, so the "
            "weights of one task cannot be taken out"
        )
    if text.per_group_layers is not None:
        raise ValueError(
            f"layers {text.per_group_layers} have separate weights per {text.group_by}, which --task cannot take out; it can "
            "with ffn='ta_moe' and with per-task LoRA"
        )
    if text.ffn != "ta_moe" and not text.lora_per_task:
        raise ValueError(f"ffn={text.ffn!r} without lora_per_task: no weight belongs to one task, so there is nothing to choose")
    mixture = {"ffn": "moe", "num_tasks": 1, "num_experts": text.experts_per_group} if text.ffn == "ta_moe" else {}
    rest = {"context_router": False, "task_routing": "learned", "lora_per_task": [], "bos_kv": task is Task.T2I}
    rest |= {"shared_expert_per_task": False}
    return with_text(config, **mixture, **rest)


def fold(part: Part) -> Part:
    """Turn a mixture of one expert into a dense FFN.

    With a shared expert, ``Expert(x) + alpha Shared(x)`` is one FFN of twice the width: gates and ups stacked, downs side by side.
    """
    mlp = next((match["mlp"] for name in part if ".mlp.experts." in name and (match := _FFN.match(name))), None)
    if mlp is None:
        return part
    gate, up = part[f"{mlp}.experts.gate_up_proj"][0].chunk(2)
    down = part[f"{mlp}.experts.down_proj"][0]
    if f"{mlp}.alpha" in part:
        shared = {key: part[f"{mlp}.shared_expert.{key}_proj.weight"] for key in ("gate", "up", "down")}
        gate, up = torch.cat([gate, shared["gate"]]), torch.cat([up, shared["up"]])
        weighted = part[f"{mlp}.alpha"].double() * shared["down"].double()
        down = torch.cat([down, weighted.to(down.dtype)], dim=1)
    kept = {name: tensor for name, tensor in part.items() if not name.startswith(f"{mlp}.")}
    folded = {"gate": gate, "up": up, "down": down}
    return kept | {f"{mlp}.{key}_proj.weight": tensor.clone() for key, tensor in folded.items()}


def fold_config(config: UnifiedConfig) -> UnifiedConfig:
    """Configuration after ``fold``.

    Raises:
        ValueError: there is more than one expert or set to choose from, or only some layers are mixtures.
    """
    text = config.text_config
    if text.per_group_layers is not None:
        raise ValueError(f"layers {text.per_group_layers} have separate weights per {text.group_by} and cannot become dense")
    if text.num_experts > 1 or text.moe_layers is not None:
        raise ValueError(
            f"ffn={text.ffn!r} with {text.num_experts} experts in layers {list(text.mixture_layers)} cannot become dense: "
            "every layer must have one expert (use --task on a model with one expert per task)"
        )
    width = text.intermediate_size * (2 if text.shared_expert else 1)
    return with_text(config, ffn="dense", intermediate_size=width, num_tasks=2)


def upcycle(part: Part, structure: Upcycled, text: UniLlamaConfig, seed: int) -> Part:
    """Replace a dense FFN by experts and new routers, or whole layers by one set of weights per group.

    Args:
        part: weights of a dense model.
        structure: of the result.
        text: the resulting text configuration.
        seed: of the routers; those of a layer depend on it and the layer alone.
    """
    if text.per_group_layers is not None:
        return structure.upcycle(part, text)
    match = next((found for name in part if name.endswith("gate_proj.weight") and (found := _FFN.match(name))), None)
    if match and int(match["layer"]) in text.mixture_layers:
        out = structure.upcycle(part, text)
        like = out[f"{match['mlp']}.experts.down_proj"]
        return out | {f"{match['mlp']}.{name}": _as(w, like) for name, w in _routers(text, int(match["layer"]), seed).items()}
    if _LAST in part and text.context_router:
        from unidecouple.models.context_router import ContextRouter

        with _seeded(seed, text.num_hidden_layers):
            fresh = ContextRouter(text)
            fresh.reset()
        prefix = _LAST.replace("norm.weight", "context_router.")
        return part | {prefix + name: _as(w, part[_LAST]) for name, w in fresh.state_dict().items()}
    return part


def _routers(text: UniLlamaConfig, layer: int, seed: int) -> Mapping[str, Tensor]:
    with _seeded(seed, layer):
        gate = ExpertRouter(text.hidden_size, text.expert_groups, text.num_experts_per_tok)
        fresh = {"gate.weight": gate.weight.detach()}
        routed_before = text.context_router and layer == text.mixture_layers[0]
        if text.ffn == "ta_moe" and not routed_before:
            fresh["router.weight"] = TaskAwareRouter(text.hidden_size, text.num_groups).weight.detach()
    return fresh


@contextlib.contextmanager
def _seeded(*seed: int) -> Iterator[None]:
    """Use a separate stream of random numbers; the global one stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.default_rng(seed).integers(2**63)))
        yield


def _as(weight: Tensor, like: Tensor) -> Tensor:
    return weight.to(device=like.device, dtype=like.dtype)
