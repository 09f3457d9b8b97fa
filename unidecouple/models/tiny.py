"""A tiny Janus: every part of the real one, small enough for two CPU cores, and its tokenizer and processor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from unidecouple.models.configuration import UniJanusConfig, UniLlamaConfig
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.processing import UniJanusProcessor

SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
    "image_token": "<image>",
    "boi_token": "<begin_of_image>",
    "eoi_token": "<end_of_image>",
}
ROLE_TOKENS = {"user": "<|user|>", "assistant": "<|assistant|>"}
SYSTEM_PROMPT = "understand ."

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|> ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image> ' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ ' <eos> ' }}{% else %}{{ ' ' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class TinySize:
    """Shape of a tiny model. ``image_size / 16`` squared is the number of tokens of an image on both sides."""

    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 256
    vision_hidden_size: int = 96
    vision_layers: int = 3
    image_size: int = 64
    codes: int = 2048
    code_dim: int = 8
    vq_latent_channels: int = 64
    vq_channel_multiplier: tuple[int, ...] = (1, 1, 2, 3, 3)
    vq_res_blocks: int = 1
    vq_encode_window: int = 32

    @property
    def patch_size(self) -> int:
        """Pixels a side of one image token."""
        return 2 ** (len(self.vq_channel_multiplier) - 1)

    @property
    def num_image_tokens(self) -> int:
        """Tokens of one image."""
        return (self.image_size // self.patch_size) ** 2


def tiny_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer over ``words`` (lower-cased), with Janus's special tokens; unknown words become <unk>."""
    vocabulary = [*SPECIAL_TOKENS.values(), *ROLE_TOKENS.values()]
    vocabulary += sorted({word.lower() for word in words} - set(vocabulary))
    model = Tokenizer(WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token=SPECIAL_TOKENS["unk_token"]))
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    bos = SPECIAL_TOKENS["bos_token"]
    model.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, vocabulary.index(bos))])
    named = {name: token for name, token in SPECIAL_TOKENS.items() if name not in ("image_token", "boi_token", "eoi_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        padding_side="left",
        extra_special_tokens={name: SPECIAL_TOKENS[name] for name in ("image_token", "boi_token", "eoi_token")}
        | {f"{role}_token": token for role, token in ROLE_TOKENS.items()},
        **named,
    )


def tiny_processor(words: Iterable[str], size: TinySize) -> UniJanusProcessor:
    """Return the processor of a tiny model: images of ``size.image_size`` pixels scaled to [-1, 1], chats by ``CHAT_TEMPLATE``."""
    images = JanusImageProcessorPil(
        size={"height": size.image_size, "width": size.image_size},
        min_size=size.patch_size,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return UniJanusProcessor(
        images,
        tiny_tokenizer(words),
        chat_template=CHAT_TEMPLATE,
        system_prompt=SYSTEM_PROMPT,
        num_image_tokens=size.num_image_tokens,
    )


def tiny_config(tokenizer: PreTrainedTokenizerFast, size: TinySize, **text: Any) -> UniJanusConfig:
    """Return the configuration of a tiny model; ``text`` overrides fields of its ``UniLlamaConfig`` (``ffn="ta_moe"``, ...)."""
    decoder = UniLlamaConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": size.hidden_size,
            "intermediate_size": size.intermediate_size,
            "num_hidden_layers": size.num_hidden_layers,
            "num_attention_heads": size.num_attention_heads,
            "num_key_value_heads": size.num_attention_heads,
            "max_position_embeddings": 1024,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        | text
    )
    vision = {
        "hidden_size": size.vision_hidden_size,
        "num_hidden_layers": size.vision_layers,
        "num_attention_heads": 4,
        "image_size": size.image_size,
        "patch_size": size.patch_size,
        "mlp_ratio": 2.0,
        "projection_dim": size.hidden_size,
        "num_image_tokens": size.num_image_tokens,
    }
    vq = {
        "embed_dim": size.code_dim,
        "num_embeddings": size.codes,
        "latent_channels": size.vq_latent_channels,
        "base_channels": 32,  # the least that the library's 32-group normalisation allows
        "channel_multiplier": size.vq_channel_multiplier,
        "num_res_blocks": size.vq_res_blocks,
        "encode_window": size.vq_encode_window,
        "projection_dim": size.hidden_size,
        "image_token_embed_dim": size.hidden_size,
    }
    return UniJanusConfig(
        text_config=decoder,
        vision_config=vision,
        vq_config=vq,
        image_token_id=tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS["image_token"]),
        tie_word_embeddings=False,
    )


def tiny_model(config: UniJanusConfig, seed: int) -> UniJanusForConditionalGeneration:
    """Return a model of ``config`` with random weights from ``seed``; the tokenizer (vqmodel) is frozen.

    All but the decoder starts at variance 1 / fan-in, word embeddings at unit length, embeddings of image tokens at variance 1.
    At the library's 0.02 the vision tower's features start 30 times smaller than at convergence, the tokenizer's unnormalised
    path, which alone carries absolute colour, is damped by five orders of magnitude, and image tokens become distinct too late:
    generation then stays on a plateau for thousands of steps (docs/experiments/predictable-tokens.md).
    """
    torch.manual_seed(seed)
    model = UniJanusForConditionalGeneration(config)
    fan_in(model.model.vision_model)
    fan_in(model.model.aligner)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=config.text_config.hidden_size**-0.5)
    fan_in(model.model.vqmodel)
    torch.nn.init.normal_(model.model.generation_embeddings.weight)
    fan_in(model.model.generation_aligner)
    fan_in(model.model.generation_head)
    model.model.vqmodel.requires_grad_(False)
    return model


def fan_in(part: torch.nn.Module) -> None:
    """Start the matrices of ``part`` at variance 1 / fan-in."""
    for name, weight in part.named_parameters():
        if weight.ndim > 1 and not name.endswith(("position_embedding.weight", "quantize.embedding.weight")):
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
