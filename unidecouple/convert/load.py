"""Checkpoints by name: their processor, and their model with weights or shapes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from unidecouple.convert.cache import converted
from unidecouple.convert.check_weights import check_weights
from unidecouple.convert.layouts import CheckpointConfig, read_config
from unidecouple.convert.parts import Part
from unidecouple.convert.processors import read_processor
from unidecouple.convert.stored import source_folder
from unidecouple.convert.weights import Weights
from unidecouple.models.base import UnifiedModel
from unidecouple.models.families import UnifiedConfig, model_class
from unidecouple.models.processing import UnifiedProcessor

_VQ = "model.vqmodel."


def checkpoint_folder(name_or_path: str) -> Path:
    """Folder of a checkpoint whose weights have our names: ``source_folder``, or its conversion in the cache.

    Raises:
        ValueError: as ``source_folder``, or the checkpoint cannot be converted.
    """
    return _loadable(name_or_path).folder


def _loadable(name_or_path: str) -> CheckpointConfig:
    described = read_config(source_folder(name_or_path))
    return described if described.loadable else read_config(converted(described.folder))


def load(name_or_path: str, dtype: torch.dtype | Literal["auto"] = torch.float32) -> tuple[UnifiedModel, UnifiedProcessor]:
    """Model (eval mode) and processor of a checkpoint in any layout.

    Args:
        name_or_path: see ``checkpoint_folder``.
        dtype: of the weights in memory; "auto" is what the configuration says.

    Raises:
        ValueError: there is no such checkpoint; its weights are broken, or not its config.json's.
    """
    config, weights, processor = open_checkpoint(name_or_path)
    return assemble(config, weights.read(list(weights.shapes)), weights.start.parent, dtype), processor


def open_checkpoint(name_or_path: str) -> tuple[UnifiedConfig, Weights, UnifiedProcessor]:
    """Configuration, weights that were found to fit it by names and shapes, and processor; raises as ``load``."""
    described = _loadable(name_or_path)
    config, processor = _read(described)
    weights = Weights(described.folder)
    check_weights(weights.shapes, config, weights.start)
    return config, weights, processor


@torch.no_grad()
def assemble(config: UnifiedConfig, state: Part, folder: Path, dtype: torch.dtype | Literal["auto"]) -> UnifiedModel:
    """The model of ``config`` (eval mode) with the weights ``state``; its defaults of generation are those in ``folder``.

    Raises:
        ValueError: the weights do not fit, or generation_config.json cannot be read.
    """
    try:
        model, info = model_class(config).from_pretrained(
            None, config=config, state_dict=state, output_loading_info=True, dtype=dtype
        )
        model.name_or_path = model.config.name_or_path = str(folder)
        if (folder / GENERATION_CONFIG_NAME).is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    except Exception as error:  # the library raises anything from KeyError to RuntimeError here
        raise ValueError(f"cannot read the checkpoint at {folder}: {error}. Copy or convert it again") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            raise ValueError(
                f"checkpoint at {folder} does not fit its config.json: {problem} {sorted(map(str, info[problem]))[:3]}"
            )
    for parameter in model.parameters():  # mapped files lie unaligned, and unaligned products differ in their last bit
        parameter.set_(parameter.clone())
    return model.eval()


def fill_buffers(made: UnifiedModel, like: UnifiedModel) -> None:
    """Give ``made``, built without data, the buffers of ``like`` that no checkpoint holds (the rotation's frequencies)."""
    for name, buffer in list(made.named_buffers()):
        if buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            setattr(made.get_submodule(owner), leaf, like.get_buffer(name))


def load_shapes(name_or_path: str) -> tuple[UnifiedModel, UnifiedProcessor]:
    """As ``load``, for a process that needs no weights: shapes on the meta device; only the image tokenizer is read."""
    config, weights, processor = open_checkpoint(name_or_path)
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        part.dtype = torch.float32  # as `load` sets it; parts of a model are built in their configuration's
    with torch.device("meta"):
        model = model_class(config)(config)
    model.model.vqmodel.to_empty(device="cpu")
    names = [name for name in weights.shapes if name.startswith(_VQ)]
    tensors = {name.removeprefix(_VQ): tensor.float() for name, tensor in weights.read(names).items()}
    model.model.vqmodel.load_state_dict(tensors)
    return model.eval(), processor


def load_processor(name_or_path: str) -> UnifiedProcessor:
    """The processor of a checkpoint, without its weights.

    Raises:
        ValueError: there is no such checkpoint, or its processor is missing or cannot be read.
    """
    return _read(read_config(source_folder(name_or_path, weights=False)))[1]


def longest_sequence(name_or_path: str) -> int:
    """Most tokens of a sequence that a checkpoint takes, without its weights; raises as ``load_processor``."""
    return int(_read(read_config(source_folder(name_or_path, weights=False)))[0].text_config.max_position_embeddings)


def _read(described: CheckpointConfig) -> tuple[UnifiedConfig, UnifiedProcessor]:
    processor = read_processor(described)
    if processor is None:
        raise ValueError(f"{described.folder} has no tokenizer.json: copy the tokenizer's and processor's files to it")
    return described.build(processor), processor
