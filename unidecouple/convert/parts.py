"""Parts of a checkpoint, and the pure functions that turn one layout's part into another's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from unidecouple.convert.names import from_deepseek, to_deepseek, unused
from unidecouple.models.deltas import DELTAS

Part = dict[str, Tensor]
"""Weights by name, with data or (on the meta device) without."""

Transform = Callable[[Part], Part]

_LAYER = re.compile(r"^(?P<layer>.*?\.(?:layers|blocks)\.\d+)\.")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
_POSITIONS = "model.vision_model.embeddings.position_embedding.weight"
_POOL_SHAPES = {
    "latent": (1, 1, 1),
    "q.weight": (1, 1),
    "q.bias": (1,),
    "kv.weight": (2, 1),
    "kv.bias": (2,),
    "proj.weight": (1, 1),
    "proj.bias": (1,),
    "norm.weight": (1,),
    "norm.bias": (1,),
}
CODEBOOK_COUNTER = 65536


def split_into_parts(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Names grouped by layer, other modules each for itself, in the order of layers; no transform looks past its part."""
    groups: dict[str, list[str]] = {}
    for name in names:
        match, owner = _LAYER.match(name), name.partition(f".{DELTAS}.")[0]
        groups.setdefault(match["layer"] if match else owner if owner != name else name.rpartition(".")[0], []).append(name)
    return [tuple(sorted(groups[key])) for key in sorted(groups, key=_natural)]


def read_deepseek(part: Part) -> Part:
    """deepseek-ai's names and shapes -> transformers': the vision tower's fused q, k, v parted, what Janus does not use dropped.

    Raises:
        ValueError: a weight that no Janus has.
    """
    out: Part = {}
    for name, tensor in part.items():
        if unused(name):
            continue
        known = from_deepseek(name)
        if known is None:
            raise ValueError(f"unexpected weight {name}: deepseek-ai's Janus and Janus-Pro have no weight of this name")
        if ".self_attn.qkv." in known:
            for projection, third in zip(_PROJECTIONS, tensor.chunk(3), strict=True):
                out[known.replace("qkv", projection)] = third.clone()
        else:
            out[known] = tensor.squeeze(0) if known == _POSITIONS and tensor.ndim == 3 else tensor
    return out


def write_deepseek(part: Part) -> Part:
    """Transformers' names and shapes -> deepseek-ai's; the reverse of ``read_deepseek``.

    What deepseek-ai's code has but never uses (SigLIP's pooling, a usage counter) is written as zeros, so that it finds all
    that it looks for.
    """
    out: Part = {}
    for name, tensor in part.items():
        if ".self_attn." in name and "vision_model" in name and any(f".{p}." in name for p in _PROJECTIONS):
            if ".q_proj." in name:
                fused = [part[name.replace("q_proj", projection)] for projection in _PROJECTIONS]
                out[_published(name.replace("q_proj", "qkv"))] = torch.cat(fused)
            continue
        published = _published(name)
        out[published] = tensor.unsqueeze(0) if name == _POSITIONS else tensor
        if name == "model.vision_model.post_layernorm.weight":
            out |= _pool(tensor)
        if name == "model.vqmodel.quantize.embedding.weight":
            out["gen_vision_model.quantize.codebook_used"] = tensor.new_zeros(CODEBOOK_COUNTER)
    return out


def untie(part: Part) -> Part:
    """The text head written out where a checkpoint ties it to the word embeddings."""
    embedding = part.get("model.language_model.embed_tokens.weight")
    return part if embedding is None else {**part, "lm_head.weight": embedding.clone()}


def _published(name: str) -> str:
    published = to_deepseek(name)
    if published is None:
        raise ValueError(f"{name} has no place in deepseek-ai's layout")
    return published


def _pool(norm: Tensor) -> Part:
    """Zeros of SigLIP's attention pooling for a tower of the width of ``norm`` (timm's AttentionPoolLatent)."""
    width, prefix = len(norm), "vision_model.vision_tower.attn_pool."
    shapes = {name: tuple(width * size for size in sizes) for name, sizes in _POOL_SHAPES.items()} | {"latent": (1, 1, width)}
    shapes |= {"mlp.fc1.weight": (4 * width, width), "mlp.fc1.bias": (4 * width,)}
    shapes |= {"mlp.fc2.weight": (width, 4 * width), "mlp.fc2.bias": (width,)}
    return {prefix + name: norm.new_zeros(shape) for name, shape in shapes.items()}


def _natural(key: str) -> list[tuple[int, str]]:
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", key)]
