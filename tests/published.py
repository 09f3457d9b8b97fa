"""deepseek-ai's layout of Janus, written down by hand: names and shapes, configurations, a small tokenizer, whole folders."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

Shapes = dict[str, tuple[int, ...]]

BOS, EOS, PAD = (
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<\uff5c\u2581pad\u2581\uff5c>",
)
SPECIAL = [BOS, EOS, PAD, "<image_placeholder>", "<|User|>", "<|Assistant|>", "<begin_of_image>", "<end_of_image>"]
SENTENCES = [
    "Is there a cow in the image? yes, two red cows.",
    "a photo of a blue pig and a yellow bus",
    "You are a helpful assistant.",
]


@dataclass(frozen=True)
class Published:
    """Sizes of a Janus; by default what Janus-Pro-1B and 7B share."""

    hidden: int
    inner: int
    layers: int
    heads: int
    vocabulary: int = 102400
    width: int = 1024
    blocks: int = 24
    tower_heads: int = 16
    image: int = 384
    patch: int = 16
    codes: int = 16384
    code_dim: int = 8
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    latents: int = 256
    res_blocks: int = 2

    @property
    def patches(self) -> int:
        return (self.image // self.patch) ** 2


PRO_1B = Published(hidden=2048, inner=5632, layers=24, heads=16)
PRO_7B = Published(hidden=4096, inner=11008, layers=30, heads=32)
TINY = Published(
    hidden=32,
    inner=64,
    layers=2,
    heads=4,
    vocabulary=420,
    width=32,
    blocks=1,
    tower_heads=2,
    image=16,
    patch=4,
    codes=64,
    channels=32,
    multipliers=(1, 1, 2),
    latents=32,
    res_blocks=1,
)


def linear(name: str, out: int, into: int, *kernel: int) -> Shapes:
    return {f"{name}.weight": (out, into, *kernel), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def shapes(size: Published) -> Shapes:
    """Every weight of the published file."""
    return {**_language(size), **_tower(size), **_adaptors(size), **_tokenizer(size)}


def _language(size: Published) -> Shapes:
    h, inner = size.hidden, size.inner
    out: Shapes = {"language_model.model.embed_tokens.weight": (size.vocabulary, h), "language_model.model.norm.weight": (h,)}
    for layer in range(size.layers):
        prefix = f"language_model.model.layers.{layer}"
        out |= {f"{prefix}.self_attn.{p}_proj.weight": (h, h) for p in "qkvo"}
        out |= {f"{prefix}.mlp.gate_proj.weight": (inner, h), f"{prefix}.mlp.up_proj.weight": (inner, h)}
        out |= {f"{prefix}.mlp.down_proj.weight": (h, inner)}
        out |= {f"{prefix}.{name}.weight": (h,) for name in ("input_layernorm", "post_attention_layernorm")}
    return out | {"language_model.lm_head.weight": (size.vocabulary, h)}


def _tower(size: Published) -> Shapes:
    w, tower = size.width, "vision_model.vision_tower"
    out = {f"{tower}.pos_embed": (1, size.patches, w)} | linear(f"{tower}.patch_embed.proj", w, 3, size.patch, size.patch)
    for block in range(size.blocks):
        prefix = f"{tower}.blocks.{block}"
        out |= norm(f"{prefix}.norm1", w) | norm(f"{prefix}.norm2", w)
        out |= linear(f"{prefix}.attn.qkv", 3 * w, w) | linear(f"{prefix}.attn.proj", w, w)
        out |= linear(f"{prefix}.mlp.fc1", 4 * w, w) | linear(f"{prefix}.mlp.fc2", w, 4 * w)
    pool = f"{tower}.attn_pool"
    out |= norm(f"{tower}.norm", w) | norm(f"{pool}.norm", w) | {f"{pool}.latent": (1, 1, w)}
    out |= linear(f"{pool}.q", w, w) | linear(f"{pool}.kv", 2 * w, w) | linear(f"{pool}.proj", w, w)
    return out | linear(f"{pool}.mlp.fc1", 4 * w, w) | linear(f"{pool}.mlp.fc2", w, 4 * w)


def _adaptors(size: Published) -> Shapes:
    h = size.hidden
    out = linear("aligner.layers.0", h, size.width) | linear("aligner.layers.2", h, h)
    out |= linear("gen_aligner.layers.0", h, size.code_dim) | linear("gen_aligner.layers.2", h, h)
    out |= linear("gen_head.output_mlp_projector", h, h) | linear("gen_head.vision_head", size.codes, h)
    return out | {"gen_embed.weight": (size.codes, size.code_dim)}


def _tokenizer(size: Published) -> Shapes:
    vq, top = "gen_vision_model", size.channels * size.multipliers[-1]
    out: Shapes = {f"{vq}.quantize.embedding.weight": (size.codes, size.code_dim), f"{vq}.quantize.codebook_used": (65536,)}
    out |= linear(f"{vq}.quant_conv", size.code_dim, size.latents, 1, 1)
    out |= linear(f"{vq}.post_quant_conv", size.latents, size.code_dim, 1, 1)
    out |= _coder(f"{vq}.encoder", size, size.multipliers, size.res_blocks, "downsample", size.channels)
    out |= linear(f"{vq}.encoder.conv_in", size.channels, 3, 3, 3) | norm(f"{vq}.encoder.norm_out", top)
    out |= linear(f"{vq}.encoder.conv_out", size.latents, top, 3, 3)
    out |= _coder(f"{vq}.decoder", size, size.multipliers[::-1], size.res_blocks + 1, "upsample", top)
    out |= linear(f"{vq}.decoder.conv_in", top, size.latents, 3, 3) | norm(f"{vq}.decoder.norm_out", size.channels)
    return out | linear(f"{vq}.decoder.conv_out", 3, size.channels, 3, 3)


def _coder(prefix: str, size: Published, multipliers: tuple[int, ...], blocks: int, resample: str, width: int) -> Shapes:
    out: Shapes = {}
    for level, multiplier in enumerate(multipliers):
        coarsest = level == (len(multipliers) - 1 if resample == "downsample" else 0)
        for block in range(blocks):
            out |= _res(f"{prefix}.conv_blocks.{level}.res.{block}", width, size.channels * multiplier)
            width = size.channels * multiplier
            if coarsest:
                out |= _attention(f"{prefix}.conv_blocks.{level}.attn.{block}", width)
        if level < len(multipliers) - 1:
            out |= linear(f"{prefix}.conv_blocks.{level}.{resample}.conv", width, width, 3, 3)
    top = size.channels * size.multipliers[-1]
    return out | _res(f"{prefix}.mid.0", top, top) | _attention(f"{prefix}.mid.1", top) | _res(f"{prefix}.mid.2", top, top)


def _res(prefix: str, into: int, out: int) -> Shapes:
    shortcut = linear(f"{prefix}.nin_shortcut", out, into, 1, 1) if into != out else {}
    both = norm(f"{prefix}.norm1", into) | norm(f"{prefix}.norm2", out)
    return both | linear(f"{prefix}.conv1", out, into, 3, 3) | linear(f"{prefix}.conv2", out, out, 3, 3) | shortcut


def _attention(prefix: str, width: int) -> Shapes:
    out = norm(f"{prefix}.norm", width)
    for name in ("q", "k", "v", "proj_out"):
        out |= linear(f"{prefix}.{name}", width, width, 1, 1)
    return out


def config(size: Published, shortened: bool = False) -> dict[str, Any]:
    """config.json as published; ``shortened`` leaves out what Llama has by default, as Janus-Pro-7B's does."""

    def part(name: str, cls: str, **params: Any) -> dict[str, Any]:
        return {"cls": cls, "model_type": name, "params": params}

    language: dict[str, Any] = {
        "max_position_embeddings": 16384,
        "model_type": "llama",
        "num_hidden_layers": size.layers,
        "torch_dtype": "bfloat16",
        "vocab_size": size.vocabulary,
    }
    if not shortened:
        language |= {"hidden_size": size.hidden, "intermediate_size": size.inner}
        language |= {"num_attention_heads": size.heads, "num_key_value_heads": size.heads}
    tower = {"image_size": size.image, "model_name": "siglip_large_patch16_384", "select_feature": "same", "select_layer": -1}
    code: dict[str, Any] = {"image_token_size": size.codes, "n_embed": size.code_dim}
    if size is TINY:  # what the original fixes in its code
        tower |= {"width": size.width, "layers": size.blocks, "heads": size.tower_heads, "patch_size": size.patch}
        code |= {"base_channels": size.channels, "channel_multiplier": list(size.multipliers), "latent_channels": size.latents}
        code |= {"num_res_blocks": size.res_blocks}
    mlp = {"depth": 2, "n_embed": size.hidden, "projector_type": "mlp_gelu"}
    head = {"image_token_embed": size.hidden, "image_token_size": size.codes, "n_embed": size.hidden}
    return {
        "aligner_config": part("aligner", "MlpProjector", input_dim=size.width, **mlp),
        "architectures": ["MultiModalityCausalLM"],
        "gen_aligner_config": part("gen_aligner", "MlpProjector", input_dim=size.code_dim, **mlp),
        "gen_head_config": part("gen_head", "vision_head", **head),
        "gen_vision_config": part("gen_vision", "VQ-16", **code),
        "language_config": language,
        "model_type": "multi_modality",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.33.1",
        "vision_config": part("vision", "CLIPVisionTower", **tower),
    }


@functools.cache
def tokenizer(vocabulary: int = TINY.vocabulary) -> Tokenizer:
    """A byte-level BPE with Janus-Pro's special tokens, split as DeepSeek's and, as its file, without BOS in the post-processor."""
    backend = Tokenizer(BPE())
    words = Regex(r"\s?[A-Za-z]+|\s?[!-/:-~]+|\s+$|\d|[\r\n]")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(words, "isolated"), byte_level])
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    backend.train_from_iterator(SENTENCES * 3, trainer)
    backend.add_special_tokens(SPECIAL)
    return backend


def weights(size: Published, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """Random weights of variance 1 / fan-in, norms around one."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in shapes(size).items():
        noise = torch.randn(shape, generator=generator)
        if "norm" in name:
            noise = 0.1 * noise + (1 if name.endswith("weight") else 0)
        elif len(shape) > 1 and "embed" not in name:
            noise *= (noise.numel() / shape[0]) ** -0.5
        out[name] = noise.to(dtype)
    return out


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_published(
    folder: Path, dtype: torch.dtype = torch.bfloat16, form: str = "safetensors", seed: int = 0, size: Published = TINY
) -> Path:
    """A checkpoint in deepseek-ai's layout; ``form`` is safetensors, bin or shards (two torch files with an index)."""
    folder.mkdir(parents=True)
    tensors = weights(size, seed, dtype)
    if form == "safetensors":
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    elif form == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        names = list(tensors)
        files = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in range(2)}
        for file, inside in files.items():
            torch.save({name: tensors[name] for name in inside}, folder / file)
        where = {name: file for file, inside in files.items() for name in inside}
        write_json(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": where})
    write_json(folder / "config.json", config(size))
    tokenizer().save(str(folder / "tokenizer.json"))
    named = {"bos_token": BOS, "eos_token": {"content": EOS, "__type": "AddedToken"}, "pad_token": None}
    write_json(folder / "tokenizer_config.json", named | {"tokenizer_class": "LlamaTokenizerFast", "model_max_length": 16384})
    pixels = {"image_size": size.image, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "min_size": 14, "rescale_factor": 1 / 255}
    write_json(folder / "preprocessor_config.json", pixels | {"do_normalize": True, "image_processor_type": "VLMImageProcessor"})
    write_json(folder / "processor_config.json", {"num_image_tokens": size.patches, "sft_format": "deepseek", "mask_prompt": False})
    (folder / "LICENSE").write_text("DeepSeek model licence\n", encoding="utf-8")
    (folder / "README.md").write_text("a model card\n", encoding="utf-8")
    return folder
