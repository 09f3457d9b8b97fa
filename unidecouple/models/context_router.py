"""The router of the first layer that sees the previous tokens."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache
from transformers.models.llama.modeling_llama import LlamaAttention

from unidecouple.models.attention import masked_kernels
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.models.router import float32_linear


class ContextRouter(nn.Module):
    """Level 1 of the first layer: one causal attention head over the embeddings, so that it also sees the previous tokens.

    Ours, beyond the paper. A word has the same embedding in a prompt and in a question. Before the first layer, a router that
    sees the token alone therefore sends both to one group; only context separates them. With this router, LoRA per task also
    works in the attention of the first layer. Routers of later layers add their logits to its logits. In the cache its keys and
    values follow those of the layers.
    """

    def __init__(self, config: UniLlamaConfig) -> None:
        super().__init__()
        one_head = copy.deepcopy(config)
        one_head.num_attention_heads = one_head.num_key_value_heads = 1
        self.slot = config.num_hidden_layers
        self.attention = LlamaAttention(one_head, self.slot)
        self.attention.config = config  # its shapes are made; what is read later is which attention set_attn_implementation chose
        self.weight = nn.Parameter(torch.zeros(config.num_groups, config.hidden_size))

    def reset(self) -> None:
        """Set W_task to zero, attention to variance 1 / fan-in (at the library's 0.02 its weights would be uniform)."""
        nn.init.zeros_(self.weight)
        for projection in self.attention.children():
            nn.init.normal_(projection.weight, std=projection.weight.shape[1] ** -0.5)

    def forward(
        self, embeddings: Tensor, position_embeddings: Any, attention_mask: Tensor | None, cache: Cache | None, **kwargs: Any
    ) -> Tensor:
        """Map (B, T, H) embeddings, with the arguments of attention, to logits (B, T, groups) in float32."""
        if cache is not None and len(cache.layers) == self.slot:
            cache.layers.append(copy.deepcopy(cache.layers[0]))  # still empty: this comes before layer 0
        x = F.rms_norm(embeddings.detach(), embeddings.shape[-1:])
        with masked_kernels(x.device, attention_mask):
            seen = x + self.attention(x, position_embeddings, attention_mask, cache, **kwargs)[0]
        return float32_linear(seen, self.weight)
