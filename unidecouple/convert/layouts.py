"""The layouts of checkpoints by config.json, and their configurations in and out of ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import JanusConfig, LlamaConfig

from unidecouple.convert.emu3 import PUBLISHED_SIZE, config_of_emu3, emu3_json, llama_fields
from unidecouple.convert.json_files import check_configs, check_depths, read_json
from unidecouple.models.configuration import UniJanusConfig, UniLlamaConfig
from unidecouple.models.emu3 import UniEmu3Config
from unidecouple.models.families import UnifiedConfig, configuration, model_class
from unidecouple.models.processing import UnifiedProcessor
from unidecouple.models.schema import own_fields

UNIDECOUPLE, TRANSFORMERS, DEEPSEEK = LAYOUTS = ("unidecouple", "transformers", "deepseek")
_MODEL_TYPES = {
    "unidecouple_janus": UNIDECOUPLE,
    "janus": TRANSFORMERS,
    "multi_modality": DEEPSEEK,
    "unidecouple_emu3": UNIDECOUPLE,
    "emu3": TRANSFORMERS,
}

_TOWER = "siglip_large_patch16_384"
_TOWER_SHAPE = {"width": 1024, "layers": 24, "heads": 16, "patch_size": 16, "mlp_ratio": 4}
_TOWER_FIELDS = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "patch_size": "patch_size",
    "mlp_ratio": "mlp_ratio",
}
_VQ_SHAPE = {"latent_channels": 256, "base_channels": 128, "channel_multiplier": [1, 1, 2, 2, 4], "num_res_blocks": 2}
# The original fixes both shapes in code. A smaller model (in tests) gives its own as further ``params``, which it ignores.


@dataclass(frozen=True)
class CheckpointConfig:
    """config.json of a checkpoint folder, read once for all that a command asks of it.

    Attributes:
        folder: the checkpoint.
        raw: what the file holds.
        layout: one of ``LAYOUTS``.
    """

    folder: Path
    raw: dict[str, Any]
    layout: str

    @property
    def is_emu3(self) -> bool:
        """Whether the checkpoint is an Emu3, and not a Janus."""
        return str(self.raw["model_type"]).endswith("emu3")

    @property
    def loadable(self) -> bool:
        """Whether the weights have our names; those of transformers' Janus do."""
        return self.layout == UNIDECOUPLE or (self.layout == TRANSFORMERS and not self.is_emu3)

    @property
    def ties_head(self) -> bool:
        """Whether the text head may be tied to the word embeddings; deepseek-ai's layout is untied unless it states otherwise."""
        inner = self.raw.get("language_config", {}).get("tie_word_embeddings", self.layout != DEEPSEEK)
        return bool(self.raw.get("tie_word_embeddings", inner))

    def build(self, processor: UnifiedProcessor | None) -> UnifiedConfig:
        """Our configuration of the checkpoint; its decoder is dense unless the layout is ours.

        Args:
            processor: its processor; deepseek-ai's layout keeps the ids of special tokens only there.

        Raises:
            ValueError: a field is missing, unknown or of a value that this model cannot have; or the tokenizer has more tokens than
                the model has word embeddings.
        """
        path = self.folder / "config.json"
        if self.layout == DEEPSEEK and processor is None:
            raise ValueError(f"{self.folder} has no tokenizer.json: the ids of images and padding are read from it; copy it there")
        check_depths(path, self.raw)
        try:
            config = self._read(processor)
        except KeyError as error:
            raise ValueError(f"{path} lacks {error}, which the model needs") from error
        except Exception as error:  # the libraries check fields with errors of many types
            raise ValueError(f"{path} does not describe a model: {error}") from error
        if processor is not None:
            _check_vocabulary(self.folder, config, processor)
        return config

    def _read(self, processor: UnifiedProcessor | None) -> UnifiedConfig:
        if self.layout == UNIDECOUPLE:
            return configuration(self.raw)
        if self.is_emu3:
            return config_of_emu3(self.raw, PUBLISHED_SIZE if processor is None else processor.picture_size)
        if self.layout == TRANSFORMERS or processor is None:
            return _ours(JanusConfig(**self.raw).to_dict())
        return _ours(_janus(self.raw, processor))


def read_config(folder: Path) -> CheckpointConfig:
    """config.json of a checkpoint folder, with the layout that its ``model_type`` names.

    Raises:
        ValueError: it is missing, or of another model; or see ``check_configs``.
    """
    raw = read_json(folder / "config.json")
    check_configs(folder, raw)
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in _MODEL_TYPES:
        raise ValueError(
            f"{folder / 'config.json'} is of model_type {kind!r}: Janus and Emu3 have one of {', '.join(_MODEL_TYPES)} "
            "(deepseek-ai's original is multi_modality; BAAI's original of Emu3 is not read)"
        )
    return CheckpointConfig(folder, raw, _MODEL_TYPES[kind])


def is_known(folder: Path) -> bool:
    """Whether config.json in ``folder`` is of a family that this package reads."""
    kind = read_json(folder / "config.json").get("model_type")
    return isinstance(kind, str) and kind in _MODEL_TYPES


def _check_vocabulary(folder: Path, config: UnifiedConfig, processor: UnifiedProcessor) -> None:
    """Refuse tokens without word embeddings: torch would fail, or read beyond the table, once a text has one of them."""
    rows, ids = config.text_config.vocab_size, processor.tokenizer.get_vocab()
    largest = max(ids, key=ids.__getitem__, default=None)
    if largest is not None and ids[largest] >= rows:
        raise ValueError(
            f"{folder / 'tokenizer.json'} numbers its tokens up to {ids[largest]} ({largest!r}), but by config.json the model has "
            f"{rows} word embeddings (vocab_size): copy the tokenizer that belongs to it, or add rows to its embeddings"
        )


def config_json(config: UnifiedConfig, layout: str) -> dict[str, Any]:
    """What config.json says of ``config`` in ``layout``.

    Raises:
        ValueError: its decoder is not dense, which only our own layout holds, or its family has no such layout.
    """
    text, raw = config.text_config, config.to_diff_dict()
    if layout == UNIDECOUPLE:
        return {**raw, "architectures": [model_class(config).__name__]}
    if text.task_deltas:
        raise ValueError(
            f"weights per task (task_deltas) have no place in the {layout} layout, which has one set of weights: choose one task "
            "(--task), or keep our own layout (--to unidecouple)"
        )
    if text.per_group_layers is not None:
        raise ValueError(
            f"per_group_layers={text.per_group_layers} have no place in the {layout} layout, which has one set of weights: keep "
            "our own layout (--to unidecouple)"
        )
    if text.ffn != "dense" or text.lora_rank:
        raise ValueError(
            f"a model with ffn={text.ffn!r}, lora_rank={text.lora_rank} has no place in the {layout} layout, which is dense: "
            "choose one task (--task) and fold it (--structure dense), or keep our own layout (--to unidecouple)"
        )
    if isinstance(config, UniEmu3Config):
        if layout == DEEPSEEK:
            raise ValueError("deepseek-ai's layout is Janus's alone: choose --to transformers or unidecouple for an Emu3")
        return emu3_json(config)
    plain = _llama(raw["text_config"])
    if layout == TRANSFORMERS:
        dropped = {"architectures", "model_type", "text_config", *own_fields(UniJanusConfig)}
        kept = {name: value for name, value in raw.items() if name not in dropped}
        vq = {k: v for k, v in raw["vq_config"].items() if v or k != "encode_window"}
        return {
            "architectures": ["JanusForConditionalGeneration"],
            "model_type": "janus",
            **kept,
            "text_config": plain,
            "vq_config": vq,
        }
    return _published(config, plain)


def _ours(raw: dict[str, Any]) -> UniJanusConfig:
    parts = {name: raw[name] for name in ("vision_config", "vq_config", "image_token_id")}
    return UniJanusConfig(text_config=llama_fields(raw["text_config"]), tie_word_embeddings=False, dtype=raw.get("dtype"), **parts)


def _llama(text: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in text.items() if name not in own_fields(UniLlamaConfig)} | {"model_type": "llama"}


def _janus(raw: dict[str, Any], processor: UnifiedProcessor) -> dict[str, Any]:
    """Transformers' fields out of deepseek-ai's."""
    vision, aligner = raw["vision_config"]["params"], raw["aligner_config"]["params"]
    code, adaptor, head = (raw[f"gen_{part}_config"]["params"] for part in ("vision", "aligner", "head"))
    tokenizer = processor.tokenizer
    named = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    text = LlamaConfig(**(raw["language_config"] | named))
    if vision.get("model_name", _TOWER) != _TOWER:
        raise ValueError(f"vision_config: model_name={vision['model_name']!r} is not Janus's {_TOWER}")
    for part in (aligner, adaptor):
        if part.get("projector_type") != "mlp_gelu":
            raise ValueError(f"projector_type={part.get('projector_type')!r} is not Janus's mlp_gelu")
    widths = {aligner["n_embed"], adaptor["n_embed"], head["n_embed"], head["image_token_embed"], text.hidden_size}
    if len(widths) > 1:
        raise ValueError(f"widths {sorted(widths)} of decoder, adaptors and image head differ: transformers' Janus has one for all")
    tower, picked = _TOWER_SHAPE | vision, vision.get("select_layer", -1)
    layers = tower["layers"] + picked + 1 if picked <= 0 else min(picked, tower["layers"])
    patches = (vision["image_size"] // tower["patch_size"]) ** 2
    return {
        "text_config": text.to_dict(),
        "vision_config": {hf: tower[name] for name, hf in _TOWER_FIELDS.items()}
        | {"image_size": vision["image_size"], "num_hidden_layers": layers, "num_image_tokens": patches}
        | {"projection_dim": aligner["n_embed"], "depth": aligner.get("depth", 1)},
        "vq_config": {name: code.get(name, value) for name, value in _VQ_SHAPE.items()}
        | {"embed_dim": code["n_embed"], "num_embeddings": code["image_token_size"], "encode_window": code.get("encode_window", 0)}
        | {"projection_dim": adaptor["n_embed"], "num_hidden_layers": adaptor.get("depth", 1)}
        | {"image_token_embed_dim": head["image_token_embed"]},
        "image_token_id": tokenizer.convert_tokens_to_ids(tokenizer.image_token),
        "dtype": raw.get("torch_dtype"),
    }


def _published(config: UniJanusConfig, text: dict[str, Any]) -> dict[str, Any]:
    """deepseek-ai's fields out of ours."""
    vision, vq, width = config.vision_config, config.vq_config, config.text_config.hidden_size
    if {vision.projection_dim, vq.projection_dim, vq.image_token_embed_dim} != {width}:
        raise ValueError(f"adaptors and image head are not all as wide as the decoder ({width}): deepseek-ai's Janus has one width")
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope["rope_theta"], "rope_scaling": None if rope["rope_type"] == "default" else rope}
    dtype = str(config.dtype or "float32").removeprefix("torch.")
    tower = {"image_size": vision.image_size, "model_name": _TOWER, "select_feature": "same", "select_layer": -1}
    tower |= _other({name: getattr(vision, hf) for name, hf in _TOWER_FIELDS.items()}, _TOWER_SHAPE)
    code = _other({name: getattr(vq, name) for name in _VQ_SHAPE} | {"channel_multiplier": list(vq.channel_multiplier)}, _VQ_SHAPE)
    code |= {"image_token_size": vq.num_embeddings, "n_embed": vq.embed_dim}
    code |= {"encode_window": vq.encode_window} if vq.encode_window else {}

    def part(name: str, cls: str, **params: Any) -> dict[str, Any]:
        return {"cls": cls, "model_type": name, "params": params}

    def adaptor(name: str, inputs: int, depth: int) -> dict[str, Any]:
        return part(name, "MlpProjector", depth=depth, input_dim=inputs, n_embed=width, projector_type="mlp_gelu")

    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "torch_dtype": dtype,
        "language_config": text | {"torch_dtype": dtype},
        "vision_config": part("vision", "CLIPVisionTower", **tower),
        "aligner_config": adaptor("aligner", vision.hidden_size, vision.depth),
        "gen_vision_config": part("gen_vision", "VQ-16", **code),
        "gen_aligner_config": adaptor("gen_aligner", vq.embed_dim, vq.num_hidden_layers),
        "gen_head_config": part(
            "gen_head", "vision_head", image_token_embed=width, image_token_size=vq.num_embeddings, n_embed=width
        ),
    }


def _other(shape: dict[str, Any], fixed: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in shape.items() if value != fixed[name]}
