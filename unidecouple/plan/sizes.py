"""Which model a run plans with: a named size, a shipped base or a checkpoint's config.json, built on the meta device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from unidecouple.convert.emu3 import PUBLISHED_SIZE
from unidecouple.convert.hub import is_hub_id
from unidecouple.convert.layouts import DEEPSEEK, read_config
from unidecouple.convert.processors import read_processor
from unidecouple.convert.stored import source_folder
from unidecouple.convert.structure import with_structure, with_text
from unidecouple.methods.stage import Lora
from unidecouple.methods.structure import Structure
from unidecouple.models.base import UnifiedModel
from unidecouple.models.configuration import UniJanusConfig
from unidecouple.models.emu3 import CODE_NAME, ROW_END, UniEmu3Config
from unidecouple.models.families import UnifiedConfig, model_class


def _janus_pro(hidden: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    """A published Janus-Pro: SigLIP-L/16 at 384 pixels and the VQ-16 tokenizer are transformers' defaults, 576 tokens an image."""
    return {
        "text_config": {
            "vocab_size": 102400,
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 16384,
        },
        "vision_config": {"projection_dim": hidden},
        "vq_config": {"projection_dim": hidden, "image_token_embed_dim": hidden},
        "tie_word_embeddings": False,
    }


def _emu3() -> dict[str, Any]:
    """The published Emu3 (arXiv 2409.18869); its image tokenizer is transformers' default, ids are of BAAI/Emu3-Gen's tokenizer."""
    text = {
        "vocab_size": 184622,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 9216,
    }
    names = {CODE_NAME.format(code=code): 151854 + code for code in range(32768)}
    return {
        "model_type": UniEmu3Config.model_type,
        "text_config": text,
        "vocabulary_map": {"<image>": 151646, ROW_END: 151846} | names,
        "image_size": PUBLISHED_SIZE,
        "tie_word_embeddings": False,
    }


# arXiv 2501.17811, table 1, and the checkpoints' config.json (deepseek-community/Janus-Pro-1B and -7B).
SIZES: dict[str, dict[str, Any]] = {
    "janus-pro-1b": _janus_pro(2048, 5632, 24, 16),
    "janus-pro-7b": _janus_pro(4096, 11008, 30, 32),
    "emu3": _emu3(),
}


def configuration(name_or_path: str) -> dict[str, Any]:
    """The configuration called ``name_or_path``, for ``UniEmu3Config`` if its ``model_type`` says so, else for ``UniJanusConfig``.

    Raises:
        ValueError: there is none, or it is of another kind of model.
    """
    if name_or_path in SIZES:
        return SIZES[name_or_path]
    if name_or_path == "scratch":
        name_or_path = "understanding"  # what a run from random weights has the size of
    if is_hub_id(name_or_path) and (size := SIZES.get(name_or_path.rpartition("/")[2].lower())) is not None:
        return size  # a published model's sizes need no download
    try:
        folder = source_folder(name_or_path, weights=False)
    except ValueError as error:
        raise ValueError(f"no configuration at {name_or_path!r}: {error}, or name a size: {', '.join(SIZES)}") from error
    described = read_config(folder)
    return described.build(read_processor(described) if described.layout == DEEPSEEK else None).to_dict()


def build(raw: dict[str, Any], structure: Structure, lora: Lora | None, later: Sequence[Structure] = ()) -> UnifiedModel:
    """The model of configuration ``raw`` with a run's structure and low-rank updates, on the meta device: shapes, no memory.

    ``later`` are the structures that stages changed it to, in order.
    """
    family = UniEmu3Config if raw.get("model_type") == UniEmu3Config.model_type else UniJanusConfig
    config: UnifiedConfig = family(**{key: value for key, value in raw.items() if key not in ("model_type", "architectures")})
    for one in (structure, *later):
        config = with_structure(config, one)
    if lora is not None:
        config = with_text(config, **lora.configure())
    with torch.device("meta"):
        return model_class(config)(config)
