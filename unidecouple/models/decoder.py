"""Our Llama decoder: task labels are arguments, and each layer returns its routing.

Shapes: B batch, T new tokens, S tokens with the cache, H hidden size.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, Cache, DynamicCache, LlamaModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import (
    LlamaPreTrainedModel,
    LlamaRotaryEmbedding,
)

from unidecouple.models.attention import SequenceBlocks, UniLlamaAttention
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.models.context_router import ContextRouter
from unidecouple.models.deltas import TaskEmbedding, attach_deltas, sequence_groups
from unidecouple.models.experts import Experts
from unidecouple.models.groups import token_groups
from unidecouple.models.lora import LoraLinear
from unidecouple.models.moe import FeedForward, MixtureOfExperts
from unidecouple.models.router import ExpertRouter, Routing, TaskAwareRouter
from unidecouple.models.shield import SharedExpertGradScale
from unidecouple.models.untied import SortedTokens, UniRMSNorm, UntiedFeedForward, UntiedLinear, within_group


@dataclass
class DecoderOutput(BaseModelOutputWithPast):
    """transformers' decoder output plus routing and measured attention, per layer.

    The two are attributes and no items, since transformers' models pass the items of this output to outputs of their own. The cache
    is the second argument: its name differs between releases of transformers (``cache`` from 5.24 on, before ``past_key_values``).

    Attributes:
        routing: one ``Routing`` per mixture.
        key_set_shares: per layer, the share of its attention that each token gives to each of ``key_sets``, mean over heads;
            (B, T, sets) float32, None without ``key_sets``.
    """

    routing: InitVar[tuple[Routing, ...] | None] = None
    key_set_shares: InitVar[tuple[Tensor, ...] | None] = None

    def __post_init__(self, routing: tuple[Routing, ...] | None, key_set_shares: tuple[Tensor, ...] | None) -> None:
        super().__post_init__()
        self.routing, self.key_set_shares = routing, key_set_shares


class UniLlamaDecoderLayer(GradientCheckpointingLayer):
    """One block: attention, then a dense FFN or a mixture of experts; or one set of all or some of its weights per group."""

    def __init__(self, config: UniLlamaConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = UniLlamaAttention(config, layer_idx)
        self.num_sets, mixtures = config.num_weight_sets(layer_idx), config.mixture_layers
        norm_sets = config.num_weight_sets(layer_idx, "norms")
        routed_before = config.context_router and layer_idx == mixtures[0]
        self.mlp: FeedForward | MixtureOfExperts | UntiedFeedForward
        if config.num_weight_sets(layer_idx, "ffn") > 1:
            self.mlp = UntiedFeedForward(config)
        else:
            self.mlp = MixtureOfExperts(config, routed=not routed_before) if layer_idx in mixtures else FeedForward(config, "mlp")
        self.input_layernorm = UniRMSNorm(config.hidden_size, config.rms_norm_eps, norm_sets)
        self.post_attention_layernorm = UniRMSNorm(config.hidden_size, config.rms_norm_eps, norm_sets)

    def forward(
        self,
        hidden_states: Tensor,
        group: Tensor | None = None,
        group_ids: Tensor | None = None,
        routing: str = "learned",
        task_logits: Tensor | None = None,
        shield: SharedExpertGradScale | None = None,
        tokens: SortedTokens | None = None,
        routers_only: bool = False,
        last: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Routing | None, Tensor | None]:
        """Transform one layer's tokens.

        Args:
            hidden_states: (B, T, H).
            group: (B, T) group of each token as known before this layer, for LoRA per task; None if unknown.
            group_ids: (B, T) group of each token by its labels (``token_groups``), or None; weights per group need it.
            routing: "learned" or "label".
            task_logits: (B, T, groups) of the context router, where there is one.
            shield: scales the gradient of some tokens into the shared expert.
            tokens: sorted by ``group_ids``; weights per group need them.
            routers_only, last: see ``MixtureOfExperts``.
            kwargs: what attention needs (masks, position embeddings, cache, key sets).

        Returns:
            (B, T, H), the layer's routing (None for a dense FFN), and the attention to key sets (None without any).
        """
        if self.num_sets > 1:
            group = group_ids
        with torch.set_grad_enabled(torch.is_grad_enabled() and not routers_only):
            mixed, _, shares = self.self_attn(self.input_layernorm(hidden_states, group), group=group, tokens=tokens, **kwargs)
            hidden_states = hidden_states + mixed
            normed = self.post_attention_layernorm(hidden_states, group)
            if isinstance(self.mlp, UntiedFeedForward):
                assert tokens is not None
                return hidden_states + self.mlp(normed, tokens), None, shares
            if isinstance(self.mlp, FeedForward):
                return hidden_states + self.mlp(normed, group), None, shares
        out, decision = self.mlp(normed, group_ids, routing, task_logits, shield, routers_only, last)
        return hidden_states + out, decision, shares


class UniLlamaPreTrainedModel(LlamaPreTrainedModel):
    """Base class: configuration type, initialisation of the new weights, names for transformers' machinery."""

    config: UniLlamaConfig
    config_class = UniLlamaConfig
    _no_split_modules = ["UniLlamaDecoderLayer"]
    _can_record_outputs = {"hidden_states": UniLlamaDecoderLayer, "attentions": UniLlamaAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (Experts, UntiedLinear)):
            module.reset(self.config.initializer_range)
        elif isinstance(module, (ExpertRouter, ContextRouter, TaskAwareRouter)):
            module.reset()
        elif isinstance(module, LoraLinear) and module.groups:
            module.reset_lora()
        elif isinstance(module, MixtureOfExperts) and module.alpha is not None:
            nn.init.constant_(module.alpha, self.config.alpha_init)


class UniLlamaModel(UniLlamaPreTrainedModel, LlamaModel):
    """The decoder. Task labels, modality labels and routing are explicit arguments, never globals or hooks."""

    def __init__(self, config: UniLlamaConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)  # LlamaModel's own would build dense layers first
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = TaskEmbedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.context_router = ContextRouter(config) if config.context_router else None
        self.layers = nn.ModuleList([UniLlamaDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = UniRMSNorm(config.hidden_size, config.rms_norm_eps, config.num_tasks if config.per_group_norm else 1)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        attach_deltas(self, config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        task_ids: Tensor | None = None,
        modality_ids: Tensor | None = None,
        routing: str | None = None,
        shield: SharedExpertGradScale | None = None,
        output_hidden_states: bool = False,
        key_sets: Tensor | None = None,
        blocks: SequenceBlocks | None = None,
        routers_only: bool = False,
        updates: bool = True,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> DecoderOutput:
        """Run ``LlamaModel`` with task and modality labels of the tokens.

        Args:
            input_ids, inputs_embeds: tokens (B, T), or their embeddings (B, T, H).
            attention_mask: (B, S) over cache and new tokens; None means causal over all.
            position_ids: (B, T) or (1, T); by default the count of tokens before.
            cache: keys and values of the tokens before, extended in place.
            use_cache: make a cache if none is given.
            task_ids, modality_ids: (B, T), (B, 1) or (1, 1) int64 ``Task`` and ``Modality``; ``group_by`` decides which is needed.
            routing: "learned" or "label"; None: as configured.
            shield: scales the gradient of some tokens into the shared experts.
            output_hidden_states: also return the input of each layer and the final state.
            key_sets: (B, T, sets) bool; also return the share of its attention that each token gives to each set.
            blocks: sequences of packed rows, as ``position_ids`` have them; attention then needs no mask, unless it is eager.
            routers_only: only the task routers' logits are needed, and gradients of nothing else: layers end at the last mixture,
                and the states that are returned mean nothing.
            updates: False leaves out the low-rank updates that a token's group chooses; see ``switchable_updates``.
            past_key_values: what transformers before 5.24 calls ``cache``.
            kwargs: passed to attention.

        Raises:
            ValueError: not exactly one input, both names of the cache, or a cache where layers are recomputed.
        """
        tokens = _one_input(input_ids, inputs_embeds)
        cache = self._cache(one_cache(cache, past_key_values), use_cache)
        position_ids = _next_positions(tokens, cache) if position_ids is None else position_ids
        group_ids = self._group_ids(task_ids, modality_ids, position_ids, tokens.shape[:2])
        hidden = self.embed_tokens(input_ids, group_ids) if inputs_embeds is None else inputs_embeds
        blocks = None if self.config._attn_implementation == "eager" else blocks
        mask, group_mask = self._masks(hidden, attention_mask, cache, position_ids, group_ids, blocks is not None)
        attention: dict[str, Any] = {"position_embeddings": self.rotary_emb(hidden, position_ids), "cache": cache, **kwargs}
        attention |= {"first": position_ids == 0} if self.config.bos_kv else {}
        task_logits = None if self.context_router is None else self.context_router(hidden, attention_mask=mask, **attention)
        if blocks is not None:
            mask, attention["blocks"] = None, blocks
        route_by = routing or self.config.task_routing
        group = self._known_groups(route_by, group_ids, task_logits) if updates else None
        attention |= {"group_ids": group_ids, "routing": route_by, "task_logits": task_logits, "key_sets": key_sets}
        attention |= {"tokens": self._sorted(group_ids), "routers_only": routers_only, "shield": shield}
        return self._run_layers(hidden, group, (mask, group_mask), output_hidden_states, **attention)

    def _run_layers(
        self,
        hidden: Tensor,
        group: Tensor | None,
        masks: tuple[Tensor | None, Tensor | None],
        output_hidden_states: bool,
        **inputs: Any,
    ) -> DecoderOutput:
        """Run all layers and the last norm; each mixture's routing is the group of the layers after it.

        Args:
            hidden: (B, T, H) embeddings.
            group: (B, T) group of each token before the first mixture; None without one.
            masks: of layers whose weights are shared, and of layers with weights per group.
            output_hidden_states: as of ``forward``.
            inputs: the same for every layer.
        """
        states, decisions, shares = [hidden], [], []
        end = self.config.mixture_layers[-1] + 1 if inputs["routers_only"] else len(self.layers)
        for number, layer in enumerate(self.layers[:end], start=1):
            mask = masks[0 if layer.num_sets == 1 else 1]
            hidden, decision, share = layer(hidden, group=group, attention_mask=mask, last=number == end, **inputs)
            states.append(hidden)
            if decision is not None:
                decisions.append(decision)
                group = decision.group.view(hidden.shape[:2])
            if share is not None:
                shares.append(share)
        hidden = self.norm(hidden, inputs["group_ids"])
        return DecoderOutput(
            hidden,
            inputs["cache"],
            hidden_states=(*states[:-1], hidden) if output_hidden_states else None,
            routing=tuple(decisions),
            key_set_shares=tuple(shares) if inputs["key_sets"] is not None else None,
        )

    def _known_groups(self, route_by: str, group_ids: Tensor | None, task_logits: Tensor | None) -> Tensor | None:
        """(B, T) group of each token before the first mixture: by its labels, or by the context router; else None."""
        if route_by == "label" or self.config.labelled_updates:
            return group_ids
        return None if task_logits is None else task_logits.argmax(-1)

    def _cache(self, cache: Cache | None, use_cache: bool | None) -> Cache | None:
        """Return the cache to extend; a new one with ``use_cache`` and no ``cache``."""
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if cache is not None and self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            raise ValueError("a cache does not go with gradient checkpointing: call model.eval(), or pass use_cache=False")
        return cache

    def _masks(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        cache: Cache | None,
        position_ids: Tensor,
        group_ids: Tensor | None,
        in_blocks: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Attention masks in the form of the kernel: of shared layers, and of layers with weights per group.

        Where packed rows are attended ``in_blocks``, the context router alone (one head, once) still takes a mask.
        """
        inputs = (self.config, hidden, mask, cache, position_ids)  # by place: the cache's name is not the same in all releases
        shared = None if in_blocks and self.context_router is None else create_causal_mask(*inputs)
        if self.config.per_group_attention == "all":
            return shared, None if in_blocks else shared
        whole = create_causal_mask(*inputs, allow_is_causal_skip=False)
        return shared, within_group(whole, group_ids, cache, self.config)

    def embed_text(self, ids: Tensor, task_ids: Tensor | None = None, position_ids: Tensor | None = None) -> Tensor:
        """Return the word embeddings (B, T, H) of ``ids`` (B, T) as ``forward`` looks them up.

        Args:
            ids: tokens.
            task_ids: as of ``forward``; needed where some rows are of one task (``task_deltas``).
            position_ids: as of ``forward``; by default 0 to T - 1.
        """
        if task_ids is None or not self.config.task_deltas:
            return self.embed_tokens(ids)
        if position_ids is None:
            position_ids = _next_positions(ids, None)
        return self.embed_tokens(ids, self._group_ids(task_ids, None, position_ids, ids.shape))

    def _sorted(self, group_ids: Tensor | None) -> SortedTokens | None:
        """Return the tokens sorted by group, once for all layers with weights per group; None without one."""
        if group_ids is None or self.config.per_group_layers is None:
            return None
        return SortedTokens.of(group_ids, self.config.num_tasks)

    def _group_ids(
        self, task_ids: Tensor | None, modality_ids: Tensor | None, position_ids: Tensor, shape: torch.Size
    ) -> Tensor | None:
        """(B, T) group of each token, or None where labels are missing and not needed."""
        group_ids = token_groups(self.config.group_by, task_ids, modality_ids)
        if group_ids is None and (self.config.per_group_layers is not None or self.config.labelled_updates):
            needed = "task_ids" if self.config.group_by == "task" else "modality_ids"
            raise ValueError(f"weights per {self.config.group_by!r} need {needed} of every token: pass them")
        if group_ids is None:
            return None
        every = group_ids.expand(shape)
        return sequence_groups(every, position_ids.expand(shape)) if self.config.task_deltas else every


def one_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """Return the cache under either of its names.

    Raises:
        ValueError: both are given.
    """
    if cache is not None and past_key_values is not None:
        raise ValueError("cache and past_key_values are two names of one argument: pass cache only")
    return past_key_values if cache is None else cache


def _one_input(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """Return the input that is given."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("pass exactly one of input_ids and inputs_embeds")
    tokens = inputs_embeds if input_ids is None else input_ids
    assert tokens is not None
    return tokens


def _next_positions(hidden: Tensor, cache: Cache | None) -> Tensor:
    """(1, T) positions after the tokens in ``cache``."""
    past = 0 if cache is None else cache.get_seq_length()
    return torch.arange(past, past + hidden.shape[1], device=hidden.device).unsqueeze(0)


AutoModel.register(UniLlamaConfig, UniLlamaModel)
