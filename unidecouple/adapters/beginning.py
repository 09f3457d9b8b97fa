"""What training began with: the base's weights in the checkpoint's structure and types."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unidecouple import config as configs
from unidecouple.methods.structure import STRUCTURES, Structure
from unidecouple.models.base import UnifiedModel
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.models.families import UnifiedConfig
from unidecouple.run import RunConfig
from unidecouple.train.build import restructure


def origin(folder: Path, base: str | None, seed: int | None) -> tuple[str, int]:
    """Base and seed of the run that wrote ``folder``, where they are not given."""
    recipe = next((path for path in (folder / "run.yaml", folder.parent / "run.yaml") if path.is_file()), None)
    if recipe is not None:
        run = configs.load(RunConfig, [recipe])
        return base or run.model_name_or_path, run.seed if seed is None else seed
    if base is None:
        raise ValueError(f"{folder} lies in no run's folder (there is no run.yaml), so its base is unknown: name it with --base")
    return base, seed or 0


def structured(model: UnifiedModel, config: UnifiedConfig, seed: int) -> dict[str, Tensor]:
    """Weights of ``model`` after it got the structure of ``config``, as at the start of training.

    Raises:
        ValueError: layers were untied on the way; their sets train whole, so an adapter would be no smaller.
    """
    text = config.text_config
    if text.per_group_layers != model.config.text_config.per_group_layers:
        raise ValueError(
            f"layers {text.per_group_layers} have separate weights per {text.group_by} and cannot have LoRA: keep"
            " the checkpoint itself, there is no small adapter of it"
        )
    if model.config.text_config.ffn == "dense" != text.ffn:
        model = restructure(model, _structure(text), seed)
    return model.state_dict()


def typed(state: dict[str, Tensor], dtypes: dict[str, str]) -> dict[str, Tensor]:
    """``state`` in the types that the checkpoint's modules are stored in; whole numbers (counters) stay what they are."""
    kinds = {name: getattr(torch, dtypes.get(_module(name), "float32")) for name in state}
    return {name: tensor.to(kinds[name]) if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def dtypes(shapes: dict[str, Tensor]) -> dict[str, str]:
    """The type of most weights of each module; where some are of another, they count as changed."""
    found: dict[str, Counter[str]] = {}
    for name, tensor in shapes.items():
        found.setdefault(_module(name), Counter())[str(tensor.dtype).removeprefix("torch.")] += 1
    return {module: counts.most_common(1)[0][0] for module, counts in sorted(found.items())}


def _structure(text: UniLlamaConfig) -> Structure:
    kind = next((kind for kind in STRUCTURES if kind.kind == text.ffn), None)
    if kind is None:
        raise ValueError(
            f"ffn={text.ffn!r}: its configuration does not record how this mixture was made of its dense base, so an adapter "
            "cannot rebuild it. Keep the whole checkpoint"
        )
    chosen: dict[str, Any] = {field.name: getattr(text, field.name) for field in fields(kind) if field.name != "kind"}
    if chosen.get("moe_layers") is not None:
        chosen["moe_layers"] = tuple(chosen["moe_layers"])
    return kind(**chosen)


def _module(name: str) -> str:
    return ".".join(name.split(".")[:2])
