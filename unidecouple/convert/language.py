"""A Janus-form base from a language model: image parts of another base around its decoder, with new adaptors between them.

Every model of Janus's kind is made this way (arXiv 2410.13848, section 3.1). The decoder computes the same logits as before, over
a vocabulary with tokens for images. A text head that is tied to the word embeddings is written out: the two can then be trained
apart, and every layout holds them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.janus.modeling_janus import JanusVisionAlignerMLP, JanusVQVAEAlignerMLP, JanusVQVAEHead

from unidecouple.convert.check_weights import check_weights
from unidecouple.convert.emu3 import llama_fields
from unidecouple.convert.json_files import read_json
from unidecouple.convert.language_chat import language_processor
from unidecouple.convert.layouts import UNIDECOUPLE, config_json
from unidecouple.convert.licences import carry_licences
from unidecouple.convert.load import open_checkpoint
from unidecouple.convert.parts import Part
from unidecouple.convert.processors import write_generation_config, write_processor
from unidecouple.convert.steps import GIGABYTE
from unidecouple.convert.structure import EMBEDDINGS, TEXT_HEAD, with_more_words
from unidecouple.convert.weights import save_shards
from unidecouple.extras import missing_package
from unidecouple.files import atomic_directory, write_json_atomic
from unidecouple.models.configuration import UniJanusConfig, UniLlamaConfig
from unidecouple.models.processing import UniJanusProcessor
from unidecouple.models.tiny import fan_in
from unidecouple.ownership import check_directory

GGUF = ".gguf"
KINDS = ("llama", "mistral", "qwen2")
"""``model_type`` of language models whose layers are a Llama's: same computation, other defaults."""

_DECODER = "model.language_model."
_KEPT = ("model.vision_model.", "model.vqmodel.", "model.generation_embeddings.")
_MAX_SHARD = 5 * GIGABYTE


@dataclass(frozen=True)
class LanguageModel:
    """A language model as it was read.

    Attributes:
        fields: of ``UniLlamaConfig``, without the ids of special tokens.
        weights: under our names, with a text head.
        tokenizer: its tokenizer.
    """

    fields: dict[str, Any]
    weights: Part
    tokenizer: PreTrainedTokenizerBase


def assemble_base(
    language: Path, target: Path, parts: str = "understanding", seed: int = 0, say: Callable[[str], None] = print
) -> None:
    """Write a base to ``target``: the decoder of ``language``, and of ``parts`` the vision tower and the image tokenizer.

    Args:
        language: folder of a Llama-like language model, or a GGUF file, whose weights are dequantised to float32.
        target: folder to write.
        parts: Janus-form checkpoint or shipped base.
        seed: of the new adaptors and the image head.
        say: gets what was done, line by line.

    Raises:
        ValueError: either cannot be read, or has no place in this model. Nothing was written.
    """
    source = language.parent if language.suffix == GGUF else language
    check_directory(target, [source])
    like, image_weights, images = open_checkpoint(parts)
    if not isinstance(like, UniJanusConfig) or not isinstance(images, UniJanusProcessor):
        raise ValueError(  # noqa: TRY004 - a checkpoint of the user's
            f"{parts} is an Emu3, whose image tokens are words of its vocabulary: give --parts of Janus's kind"
        )
    model = read_language(language)
    processor, added = language_processor(model.tokenizer, images)
    config = _config(model, like, processor)
    state = with_more_words(model.weights, config.text_config.vocab_size, added)
    say(f"{language}: {_size(model.weights)}, vocabulary {len(model.tokenizer):,}, {len(added)} tokens added")
    state |= image_weights.read([name for name in image_weights.shapes if name.startswith(_KEPT)])
    state |= _adaptors(config, state[EMBEDDINGS], seed)
    check_weights(state, config, language / "config.json" if language.is_dir() else language)
    with atomic_directory(target, [source]) as staging:
        config.dtype = str(state[EMBEDDINGS].dtype).removeprefix("torch.")
        write_json_atomic(staging / "config.json", config_json(config, UNIDECOUPLE))
        write_processor(staging, processor, UNIDECOUPLE)
        _write_generation_config(image_weights.start.parent, staging, processor)
        packaged = source.parent.glob(f"{source.name}-*.dist-info")  # a wheel's licence lies beside its folder
        carried = [name for folder in (source, *packaged) for name in carry_licences(folder, staging)]
        shapes = {name: tensor.to("meta") for name, tensor in state.items()}
        save_shards(staging, shapes, iter([state]), _MAX_SHARD)
    say(f"{target}: {_size(shapes)}; image parts of {parts}; licences: {', '.join(carried) or 'none was there'}")


def read_language(path: Path) -> LanguageModel:
    """Read a language model through transformers.

    Args:
        path: folder in transformers' layout, or a GGUF file.

    Raises:
        ValueError: it is missing, broken, quantized other than in GGUF, or not of ``KINDS`` with attention to all tokens before.
    """
    if path.suffix == GGUF:
        try:
            importlib.import_module("gguf")
        except ImportError as error:
            raise missing_package(f"reading {path}", "gguf", error) from error
    there = path.is_file() if path.suffix == GGUF else (path / "config.json").is_file()
    if not there:
        raise ValueError(f"no language model at {path}: give a folder with config.json, or a {GGUF} file")
    if path.suffix != GGUF:
        _check_kind(path, read_json(path / "config.json"))
    folder, given = (path.parent, {"gguf_file": path.name}) if path.suffix == GGUF else (path, {})
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **given)
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", output_loading_info=True, trust_remote_code=False, **given
        )
    except Exception as error:  # the libraries raise anything here, of files of any content
        raise ValueError(f"cannot read the language model at {path}: {error}") from error
    fields = model.config.to_dict()
    _check_kind(path, fields, gguf=bool(given))
    if info["missing_keys"] or info["mismatched_keys"]:
        lacking = sorted(map(str, (*info["missing_keys"], *info["mismatched_keys"])))
        raise ValueError(f"the language model at {path} lacks weights of its config.json: {', '.join(lacking[:3])}")
    return LanguageModel(_llama(fields), _weights(model), tokenizer)


def _check_kind(path: Path, raw: Mapping[str, Any], gguf: bool = False) -> None:
    kind = raw.get("model_type")
    if kind not in KINDS:
        raise ValueError(f"{path} is of model_type {kind!r}, whose layers are not Llama's: {', '.join(KINDS)} can be assembled")
    if raw.get("quantization_config") and not gguf:
        raise ValueError(f"{path} holds quantized weights: give the model in 16 or 32 bits, or a {GGUF} file")
    windowed = raw.get("sliding_window") is not None and raw.get("use_sliding_window", True)
    if windowed or any(one != "full_attention" for one in raw.get("layer_types") or ()):
        raise ValueError(f"{path} attends to a window of tokens (sliding_window={raw.get('sliding_window')}), which Llama has not")


def _llama(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our decoder's configuration."""
    dropped = {"bos_token_id", "eos_token_id", "pad_token_id", "vocab_size", "tie_word_embeddings", "dtype", "architectures"}
    kept = {name: value for name, value in llama_fields(raw).items() if name not in dropped}
    if raw["model_type"] == "qwen2":
        kept["attention_bias"] = True
    return kept


def _weights(model: nn.Module) -> Part:
    """Weights under our names; a tied text head is a copy, and Qwen's missing bias of the output projection is zero."""
    state: Part = {}
    for name, tensor in model.state_dict().items():
        state[name if name == TEXT_HEAD else name.replace("model.", _DECODER, 1)] = tensor.detach()
    state[TEXT_HEAD] = state.get(TEXT_HEAD, state[EMBEDDINGS]).clone()
    for name in [name for name in state if name.endswith("q_proj.bias")]:
        weight = state[name.replace("q_proj.bias", "o_proj.weight")]
        state.setdefault(name.replace("q_proj", "o_proj"), weight.new_zeros(len(weight)))
    return state


def _config(model: LanguageModel, like: UniJanusConfig, processor: UniJanusProcessor) -> UniJanusConfig:
    """The base's configuration: image parts of ``like``, as wide as the decoder where they meet."""
    tokenizer, width = processor.tokenizer, model.fields["hidden_size"]
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    rows = max(len(model.weights[EMBEDDINGS]), len(tokenizer))
    text = UniLlamaConfig(**model.fields, **ids, vocab_size=rows, tie_word_embeddings=False)
    return UniJanusConfig(
        text_config=text,
        vision_config=like.vision_config.to_dict() | {"projection_dim": width},
        vq_config=like.vq_config.to_dict() | {"projection_dim": width, "image_token_embed_dim": width},
        image_token_id=tokenizer.convert_tokens_to_ids(tokenizer.image_token),
        tie_word_embeddings=False,
    )


def _adaptors(config: UniJanusConfig, embeddings: Tensor, seed: int) -> Part:
    """New adaptors of both sides, whose outputs are about as long as word embeddings, and a new image head."""
    made: dict[str, nn.Module] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made["aligner"] = JanusVisionAlignerMLP(config.vision_config)
        made["generation_aligner"] = JanusVQVAEAlignerMLP(config.vq_config)
        made["generation_head"] = JanusVQVAEHead(config.vq_config)
        for module in made.values():
            fan_in(module)
    state = {f"model.{part}.{name}": weight.detach() for part, module in made.items() for name, weight in module.named_parameters()}
    length = embeddings.float().square().mean().sqrt()
    for part in ("aligner", "generation_aligner"):
        for last in [name for name in state if name.startswith(f"model.{part}.")][-2:]:  # weight and bias
            state[last] = state[last] * length
    return {name: tensor.to(embeddings.dtype) for name, tensor in state.items()}


def _write_generation_config(parts: Path, staging: Path, processor: UniJanusProcessor) -> None:
    """How the base of the image parts samples images, with the ids of this base."""
    path = parts / "generation_config.json"
    known = read_json(path) if path.is_file() else {}
    sampling = {name: known[name] for name in ("guidance_scale", "do_sample", "temperature") if name in known}
    if sampling:
        write_json_atomic(staging / path.name, sampling)
    write_generation_config(staging, staging, processor)


def _size(weights: Mapping[str, Tensor]) -> str:
    return f"{sum(tensor.numel() for tensor in weights.values()):,} weights"
