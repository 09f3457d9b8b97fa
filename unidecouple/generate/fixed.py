"""The decoder of one task laid out for decoding: one matrix per product, keys and values in fixed buffers, no host sync."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import ACT2FN

from unidecouple.batch import Modality, Task
from unidecouple.generate.layout import LayerWeights, lay_out
from unidecouple.models.attention import masked_kernels
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.models.decoder import UniLlamaModel
from unidecouple.models.groups import token_groups

BUCKET = 64
"""Attention reads keys in multiples of this many tokens, so that shapes rarely change."""


class KVCache:
    """Keys and values of ``rows`` sequences, each from column 0 on: per layer one tensor (rows, kv heads, length, D) of each.

    Args:
        config: of the decoder.
        rows: sequences at a time.
        length: most tokens of one sequence, prompt and generated tokens.
        like: of the dtype and device.
    """

    def __init__(self, config: UniLlamaConfig, rows: int, length: int, like: Tensor) -> None:
        columns = -(-length // BUCKET) * BUCKET
        shape = (rows, config.num_key_value_heads, columns, config.head_dim)
        self.keys = [like.new_zeros(shape) for _ in range(config.num_hidden_layers)]
        self.values = [like.new_zeros(shape) for _ in range(config.num_hidden_layers)]
        self.columns = torch.arange(columns, device=like.device)


def bucketed(reach: int, cache: KVCache) -> int:
    """Round ``reach`` up to a multiple of ``BUCKET``, at most the columns of ``cache``."""
    return min(-(-reach // BUCKET) * BUCKET, len(cache.columns))


class FixedDecoder:
    """One decoding step of ``decoder`` as few, fixed operators, for generated tokens of one task.

    On a GPU the experts of the group and the shared expert form one wide SwiGLU. Routing weights, and alpha, multiply its inner
    activations, with zeros for experts that a token does not use. This computes (e + 1) FFNs instead of two, without sorting,
    gathering or waiting for the host: with few rows, reading the weights dominates, and most are read anyway. On a CPU arithmetic
    dominates and nothing waits: each expert gets its own rows (1.2 to 1.3 times as fast, 1 to 64 rows of two experts).

    Of layers with one set of weights per group, the set of the generated tokens is taken: an answer is text, an image is image
    tokens. Prompts are read by the model's own forward pass.

    Args:
        decoder: of a model that serves ``task`` (see ``one_task``).
        task: of the tokens to come.

    Raises:
        ValueError: a router would choose between groups, there are low-rank updates, or groups attend to their own tokens only.
    """

    def __init__(self, decoder: UniLlamaModel, task: Task) -> None:
        config = decoder.config
        _check(config)
        self.config = config
        self.act: Callable[[Tensor], Tensor] = ACT2FN[config.hidden_act]
        group, self.waits = group_of(config, task), decoder.device.type == "cpu"
        self.blocks = lay_out(decoder, group)
        self.norm = decoder.norm.weight.detach()[group] if decoder.norm.num_sets > 1 else decoder.norm.weight.detach()
        probe = decoder.embed_tokens.weight
        every = torch.arange(config.max_position_embeddings, device=probe.device).unsqueeze(0)
        cos, sin = decoder.rotary_emb(probe, position_ids=every)
        left, right = sin[0].chunk(2, dim=-1)
        self.cos, self.sin = cos[0].unsqueeze(1), torch.cat([-left, right], dim=-1).unsqueeze(1)
        self.heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)

    def step(self, x: Tensor, cache: KVCache, position: Tensor, reach: int) -> Tensor:
        """Carry one new token of every row through the layers.

        Args:
            x: (B, H) embeddings.
            cache: keys and values before; the new ones are written to them.
            position: (B,) int64 tokens that each row has before this one, which is where it stands.
            reach: at least every position + 1; attention reads so many keys, on a device to the next multiple of ``BUCKET``.

        Returns:
            (B, H) after the final norm.
        """
        if not self.waits:
            reach = bucketed(reach, cache)
        hidden = (cache.columns[:reach] > position.unsqueeze(-1))[:, None, None]
        mask = torch.zeros(hidden.shape, dtype=x.dtype, device=x.device).masked_fill_(hidden, -torch.inf)
        rotation = (self.cos[position], self.sin[position])
        rows = torch.arange(len(x), device=x.device)
        for block, keys, values in zip(self.blocks, cache.keys, cache.values, strict=True):
            normed = self._normed(x, block.input_norm)
            x = x + self._attend(block, normed, (keys[: len(x)], values[: len(x)]), (rows, position), rotation, mask)
            x = x + self.feed_forward(block, self._normed(x, block.post_norm))
        return self._normed(x, self.norm)

    def feed_forward(self, block: LayerWeights, x: Tensor) -> Tensor:
        """(B, H) -> (B, H): the FFN, or the mixture, of one layer."""
        if block.router is None or block.factor is None:
            return self._swiglu(x, block.gate_up, block.down)
        share, expert = self._route(block.router, x)
        return (self._by_expert if self.waits else self._side_by_side)(block, block.factor, x, share, expert)

    def _swiglu(self, x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        gate, up = x.mm(gate_up).chunk(2, dim=1)
        return (self.act(gate) * up).mm(down)

    def _side_by_side(self, block: LayerWeights, factor: Tensor, x: Tensor, share: Tensor | None, expert: Tensor) -> Tensor:
        """Run all experts on all rows; those that a row does not use are multiplied by zero."""
        gate, up = x.mm(block.gate_up).view(len(x), factor.shape[1], 2, -1).unbind(2)
        each = factor[expert] if share is None else factor[expert] * share[..., None, None]
        each = each.sum(1)  # shares sum to one, so alpha comes out whole
        inner = self.act(gate) * up * each.to(up.dtype)
        return inner.view(len(x), -1).mm(block.down)

    def _by_expert(self, block: LayerWeights, factor: Tensor, x: Tensor, share: Tensor | None, expert: Tensor) -> Tensor:
        """Run each expert on its rows, the shared one on all; the host reads how many rows each has."""
        experts, ffns = factor.shape[:2]
        flat = expert.flatten()
        counts, order = torch.bincount(flat, minlength=experts).tolist(), flat.argsort(stable=True)
        rows = order if share is None else order // expert.shape[1]
        weights = list(zip(block.gate_up.chunk(ffns, dim=1), block.down.chunk(ffns), strict=True))
        parts = x.index_select(0, rows).split(counts)
        done = torch.cat([self._swiglu(part, *pair) for part, pair in zip(parts, weights, strict=False) if len(part)])
        if share is not None:
            done = done * share.flatten()[order].unsqueeze(1).to(done.dtype)
        alone = torch.zeros_like(x) if ffns == experts else self._swiglu(x, *weights[-1]) * factor[0, -1].to(x.dtype)
        return alone.index_add_(0, rows, done)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.config.rms_norm_eps)

    def _attend(
        self,
        block: LayerWeights,
        x: Tensor,
        cache: tuple[Tensor, Tensor],
        place: tuple[Tensor, Tensor],
        rotation: tuple[Tensor, Tensor],
        mask: Tensor,
    ) -> Tensor:
        heads, width = self.heads, self.config.head_dim
        made = x.mm(block.qkv).view(len(x), sum(heads), width)
        turned, value = made.split((heads[0] + heads[1], heads[2]), dim=1)
        turned = turned * rotation[0] + turned.roll(width // 2, -1) * rotation[1]
        query, key = turned.split(heads[:2], dim=1)
        (keys, values), (rows, position) = cache, place
        keys[rows, :, position] = key
        values[rows, :, position] = value
        reach = mask.shape[-1]
        with masked_kernels(query.device, mask):
            mixed = F.scaled_dot_product_attention(
                query.unsqueeze(2), keys[:, :, :reach], values[:, :, :reach], mask, enable_gqa=heads[0] != heads[1]
            )
        return mixed.reshape(len(x), -1).mm(block.out)

    def _route(self, router: Tensor, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """Shares and experts (B, k) of each token, as ``ExpertRouter`` gives them; None where k = 1 and the share is 1."""
        logits, top = x.float().mm(router), self.config.num_experts_per_tok
        if top == 1:
            return None, logits.argmax(-1, keepdim=True)
        probs, expert = logits.softmax(-1).topk(top, dim=-1)
        return probs / probs.sum(-1, keepdim=True), expert


def group_of(config: UniLlamaConfig, task: Task) -> int:
    """Return the group of the generated tokens of ``task``; 0 in a model of one group."""
    if config.per_group_layers is None and config.num_groups == 1:
        return 0
    modality = Modality.IMAGE_OUT if task is Task.T2I else Modality.TEXT
    group = token_groups(config.group_by, torch.tensor(int(task)), torch.tensor(int(modality)))
    assert group is not None
    return int(group)


def _check(config: UniLlamaConfig) -> None:
    plain = "; the plain loops (unidecouple.generate.image.draw, text.answer) take any model"
    if config.ffn == "ta_moe" or config.lora_rank:
        raise ValueError(
            f"ffn={config.ffn!r}, lora_rank={config.lora_rank}: take one task's model first, with its low-rank updates merged "
            f"(`one_task`, or `unidecouple convert --task … --merge-lora`){plain}"
        )
    if config.per_group_attention == "group":
        raise ValueError(f"per_group_attention='group' attends within a group, which a cache of fixed places does not{plain}")
    if config.attention_bias or config.mlp_bias:
        raise ValueError(f"attention_bias={config.attention_bias}, mlp_bias={config.mlp_bias}: no model served here has any")
