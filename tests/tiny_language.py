"""A tiny language model on disk: grouped key/value heads, a text head tied to the word embeddings, byte-pair words, ChatML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As SmolLM2-Instruct has it."""

_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_TEXT = ["system user assistant", "You are a helpful assistant.", "What is in the picture? A red cat sits on the blue mat."]


def byte_pairs(size: int = 290) -> Tokenizer:
    """A byte-level tokenizer of at most ``size`` words."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(_TEXT * 3, trainers.BpeTrainer(vocab_size=size, special_tokens=_SPECIAL, initial_alphabet=alphabet))
    return made


def language_tokenizer(chat_template: str | None = CHATML, **named: Any) -> PreTrainedTokenizerFast:
    """Its tokenizer, with special tokens as SmolLM2 has them unless ``named`` gives others."""
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=byte_pairs(), chat_template=chat_template, **(special | named))


def language_config(**changed: Any) -> LlamaConfig:
    """3 heads per key/value head, width 48, two layers."""
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "max_position_embeddings": 512}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True, "vocab_size": 290}
    return LlamaConfig(**(sizes | heads | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2} | changed))


def write_language(folder: Path, tokenizer: PreTrainedTokenizerFast | None = None, **changed: Any) -> Path:
    """Write the model and its tokenizer to ``folder``, and return it; ``changed`` fields of its configuration."""
    torch.manual_seed(0)
    LlamaForCausalLM(language_config(**changed)).save_pretrained(folder)
    (tokenizer or language_tokenizer()).save_pretrained(folder)
    return folder
