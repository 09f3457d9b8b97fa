"""Names of weights as module kinds and layers, in every family."""

from __future__ import annotations

import re

from unidecouple.methods.selection import part_of

_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|h)\.(\d+)\.")
_KINDS = (
    ("vision_tower", r"(?:^|[._])(?:vision|vit|siglip|visual|aligner|und_trans)"),
    ("image_tokenizer", r"(?:^|[._])(?:vq|vae)"),
    ("generation", r"(?:^|[._])(?:gen|moe_gen|diffusion|llm2vae|vae2llm|time_embed)"),
    ("norms", r"norm|(?:^|\.)ln_"),
    ("embeddings", r"embed_tokens|wte|word_embed"),
    ("text_head", r"lm_head"),
    ("attention", r"attn|attention|[qkvo]_proj"),
    ("ffn", r"mlp|feed_forward|ffn|(?:gate|up|down)_proj"),
)


def kind_of(name: str, known: bool) -> str:
    """Module kind of weight ``name``: a part of ``PARTS``, ``image_tokenizer`` or ``other``; of an unknown family by its name."""
    if known:
        return part_of(name)
    return next((kind for kind, pattern in _KINDS if re.search(pattern, name)), "other")


def layer_of(name: str, known: bool) -> int | None:
    """Decoder layer of weight ``name``, counted from 0; None outside the decoder's layers."""
    if known and ".language_model." not in name:
        return None
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def owner_of(name: str) -> str | None:
    """Task key of the only task that uses a weight of a Janus: "mmu" or "t2i"; None where both do.

    The word embeddings, the decoder and its norms serve both.
    """
    if name.startswith(("model.vision_model.", "model.aligner.", "lm_head.")):
        return "mmu"
    if name.startswith(("model.generation_", "model.vqmodel.")):
        return "t2i"
    return None
