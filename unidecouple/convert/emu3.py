"""Transformers' layout of Emu3 in and out: names, config.json, processor. BAAI's original layout is not read."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import Emu3Config, Emu3Processor, LlamaConfig
from transformers.models.emu3.configuration_emu3 import Emu3TextConfig, Emu3VQVAEConfig

from unidecouple.convert.parts import Part
from unidecouple.models.emu3 import UniEmu3Config
from unidecouple.models.emu3_processing import UniEmu3Processor
from unidecouple.models.families import UnifiedConfig
from unidecouple.models.processing import UnifiedProcessor
from unidecouple.models.schema import own_fields

PUBLISHED_SIZE = 720
"""Pixels a side of Emu3-Gen's square images (image_area 518,400)."""

_NAMES = (
    ("text_model.lm_head.", "lm_head."),
    ("text_model.model.", "model.language_model."),
    ("vqmodel.", "model.vqmodel."),
    ("model.text_model.", "model.language_model."),
)
"""Beginnings of names in files that transformers writes, and ours; the last is what its models themselves say."""

_IDS = ("bos", "eos", "pad")


def read_names(part: Part) -> Part:
    """Transformers' names -> ours, which are Janus's."""
    return {_renamed(name, dict(_NAMES)): tensor for name, tensor in part.items()}


def write_names(part: Part) -> Part:
    """Our names -> transformers'; the reverse of ``read_names``."""
    return {published_name(name): tensor for name, tensor in part.items()}


def published_name(name: str) -> str:
    """Transformers' name, in files, of a weight that we call ``name``."""
    return _renamed(name, {ours: theirs for theirs, ours in reversed(_NAMES)})


def _renamed(name: str, beginnings: Mapping[str, str]) -> str:
    for beginning, other in beginnings.items():
        if name.startswith(beginning):
            return other + name.removeprefix(beginning)
    return name


def config_of_emu3(raw: dict[str, Any], image_size: int) -> UniEmu3Config:
    """Our configuration of what transformers' config.json says; dropout is off (see ``models/emu3.py``)."""
    plain = Emu3Config(**raw).to_dict()
    text = {name: value for name, value in llama_fields(plain["text_config"]).items() if name != "attention_dropout"}
    return UniEmu3Config(
        text_config=text,
        vq_config=plain["vq_config"],
        vocabulary_map=plain["vocabulary_map"],
        tie_word_embeddings=False,
        dtype=raw.get("dtype"),
        image_size=image_size,
    )


def llama_fields(text: Mapping[str, Any]) -> dict[str, Any]:
    """What our decoder shares with transformers' Llama; other fields that a published file may have mean nothing to it."""
    known = {field.name for field in fields(LlamaConfig)}
    return {name: value for name, value in text.items() if name in known}


def emu3_json(config: UniEmu3Config) -> dict[str, Any]:
    """Transformers' config.json of a dense model; dropout is what transformers has for Emu3, which is the published."""
    raw, text = config.to_diff_dict(), config.text_config.to_dict()
    known = inspect.get_annotations(Emu3TextConfig).keys() - {"attention_dropout"}
    odd = {"head_dim"} if text["head_dim"] * text["num_attention_heads"] != text["hidden_size"] else set()
    biased = {"mlp_bias"} if text["mlp_bias"] else set()
    kept = {name: value for name, value in text.items() if name in known | odd | biased}
    vq = {name: value for name, value in config.vq_config.to_dict().items() if name in inspect.get_annotations(Emu3VQVAEConfig)}
    rest = {
        name: value
        for name, value in raw.items()
        if name not in own_fields(UniEmu3Config) | {"model_type", "text_config", "vq_config"}
    }
    return {
        **rest,
        "architectures": ["Emu3ForConditionalGeneration"],
        "model_type": "emu3",
        "text_config": kept | {"model_type": "emu3_text_model"},
        "vq_config": vq | {"model_type": "emu3_vqgan"},
        "vocabulary_map": config.vocabulary_map,
    }


def read_emu3_processor(folder: Path, ours: bool) -> UniEmu3Processor:
    """The processor of a checkpoint; from transformers' layout, images get 720 pixels a side, or as many as it allows."""
    if ours:
        return UniEmu3Processor.from_pretrained(folder, trust_remote_code=False)
    plain = Emu3Processor.from_pretrained(folder, trust_remote_code=False)
    factor = plain.image_processor.spatial_factor
    side = min(PUBLISHED_SIZE, math.isqrt(plain.image_processor.max_pixels))
    return UniEmu3Processor.of_emu3(plain, side // factor * factor)


def write_emu3_processor(folder: Path, processor: UniEmu3Processor, ours: bool) -> None:
    """Save ``processor`` into ``folder``; transformers' has no place for the system prompt and the size of images."""
    if ours:
        processor.save_pretrained(folder)
    else:
        Emu3Processor(processor.image_processor, processor.tokenizer, processor.chat_template).save_pretrained(folder)


def resized(config: UnifiedConfig, processor: UnifiedProcessor | None, image_size: int) -> UniEmu3Config:
    """``config`` for images of ``image_size`` pixels a side, and ``processor`` changed to make them.

    Raises:
        ValueError: it is a Janus's, or the size is no multiple of an image token's.
    """
    if not isinstance(config, UniEmu3Config):
        raise ValueError(f"--image-size {image_size}: a Janus has one size, its vision tower's")  # noqa: TRY004 - a user's mistake
    if isinstance(processor, UniEmu3Processor):
        processor.image_size = image_size
    return UniEmu3Config(**config.to_dict() | {"image_size": image_size})


def emu3_generation_config(known: dict[str, Any], processor: UniEmu3Processor) -> dict[str, Any]:
    """generation_config.json: what a checkpoint has, and the ids that every loop needs."""
    return {f"{kind}_token_id": getattr(processor.tokenizer, f"{kind}_token_id") for kind in _IDS} | known
