"""A tiny Emu3 in transformers' own layout and classes, as one is downloaded: every part of the published one, random weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import Emu3Config, Emu3ForConditionalGeneration, Emu3Processor, PreTrainedTokenizerFast
from transformers.models.emu3.image_processing_emu3 import Emu3ImageProcessor

SIZE, SIDE, CODES = 16, 4, 64
"""Pixels a side of an image, tokens a side, rows of the codebook."""

NAMED = {
    "image_token": "<image>",
    "boi_token": "<|image start|>",
    "eoi_token": "<|image end|>",
    "image_wrapper_token": "<|image token|>",
    "eof_token": "<|extra_201|>",
}
WORDS = "you are a helpful assistant . user : what is this ? cat dog cow pig red blue photo of yes no there in the image picture *"

PUBLISHED_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""As transformers' conversion of Emu3-Chat has it."""


def emu3_tokenizer(words: Iterable[str] = WORDS.split()) -> PreTrainedTokenizerFast:
    """Word-level, with Emu3's special tokens and image tokens under their published names."""
    special = {"pad_token": "<|endoftext|>", "bos_token": "<|extra_203|>", "eos_token": "<|extra_204|>", "unk_token": "<unk>"}
    vocabulary = [*special.values(), *NAMED.values(), "<|extra_200|>", *map(str, range(10)), *words]
    vocabulary += [f"<|visual token {code:06d}|>" for code in range(CODES)]
    model = Tokenizer(WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<unk>"))
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    extra = NAMED | {"eol_token": "<|extra_200|>"}
    return PreTrainedTokenizerFast(tokenizer_object=model, padding_side="left", extra_special_tokens=extra, **special)


def emu3_processor() -> Emu3Processor:
    """transformers' own; images of SIZE pixels a side stay as they are."""
    area = {"min_pixels": SIZE**2, "max_pixels": SIZE**2, "spatial_factor": SIZE // SIDE}
    images = Emu3ImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3, **area)
    processor = Emu3Processor(images, emu3_tokenizer(), chat_template=PUBLISHED_TEMPLATE)
    processor.downsample_ratio = SIZE // SIDE  # it has 8 here for every model
    return processor


def emu3_config(tokenizer: PreTrainedTokenizerFast) -> Emu3Config:
    """Grouped-query attention, the published RoPE base, dropout as published."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vq = {
        "codebook_size": CODES,
        "base_channels": 32,  # the least that the library's 32-group normalisation allows
        "channel_multiplier": [1, 1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [2],
        "hidden_size": 32,
    }
    return Emu3Config(text_config=text, vq_config=vq, vocabulary_map=tokenizer.get_vocab())


def plain_emu3(seed: int = 0) -> Emu3ForConditionalGeneration:
    """transformers' own model; matrices at variance 1 / fan-in, so that logits depend on all of them."""
    torch.manual_seed(seed)
    model = Emu3ForConditionalGeneration(emu3_config(emu3_tokenizer())).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "vqmodel" not in name:
                weight.normal_(std=weight.shape[-1] ** -0.5)
    return model


def write_emu3(folder: Path, seed: int = 0) -> Path:
    """A checkpoint in transformers' layout."""
    plain_emu3(seed).save_pretrained(folder)
    emu3_processor().save_pretrained(folder)
    (folder / "LICENSE").write_text("Apache-2.0\n")
    return folder
