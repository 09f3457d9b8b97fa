"""Janus with both sides trainable: one forward takes a joint batch and returns both tasks' losses.

A subclass of transformers' ``JanusForConditionalGeneration`` (vision tower, aligner, VQ tokenizer, generation head) over our
decoder. What the library lacks and this adds: the loss on image tokens, joint batches, task ids, router outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, Cache, JanusForConditionalGeneration
from transformers.models.janus.modeling_janus import JanusCausalLMOutputWithPast

from unidecouple.batch import Batch, JointBatch, Modality
from unidecouple.models.base import JointOutput, SummedLoss, UnifiedModel, cross_entropy
from unidecouple.models.configuration import UniJanusConfig
from unidecouple.models.decoder import one_cache


class UniJanusForConditionalGeneration(UnifiedModel, JanusForConditionalGeneration):
    """Janus whose decoder is ``UniLlamaModel``.

    Called with ``batch=`` it returns a ``JointOutput``; called as transformers' Janus it behaves as that does, with
    ``task_ids``, ``modality_ids`` and ``routing`` as further arguments.
    """

    config: UniJanusConfig
    config_class = UniJanusConfig

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        task_ids: Tensor | None = None,
        modality_ids: Tensor | None = None,
        routing: str | None = None,
        batch: JointBatch | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> JanusCausalLMOutputWithPast | JointOutput:
        """Run one forward pass.

        Args:
            input_ids, pixel_values, attention_mask, position_ids, cache, inputs_embeds, labels, use_cache,
                logits_to_keep: as in transformers' Janus (understanding side).
            task_ids: (B, T), (B, 1) or (1, 1) int64 tasks of the tokens.
            modality_ids: the same of ``Modality``; by default placeholders in ``input_ids`` are images, and all else is text.
            routing: "learned" or "label", by default the configuration's.
            batch: a joint batch; then all other tensors are taken from it.
            past_key_values: what transformers before 5.24 calls ``cache``.
            kwargs: passed on to transformers' Janus; with ``batch``, to ``joint``.
        """
        if batch is not None:
            return self.joint(batch, routing, **kwargs)
        if modality_ids is None and input_ids is not None:
            modality_ids = self.modality_ids(input_ids)
        return super().forward(
            input_ids,  # by place: the cache's name is not the same in all releases of transformers
            pixel_values,
            attention_mask,
            position_ids,
            one_cache(cache, past_key_values),
            inputs_embeds,
            labels,
            use_cache,
            logits_to_keep,
            task_ids=task_ids,
            modality_ids=modality_ids,
            routing=routing,
            **kwargs,
        )

    @property
    def num_image_tokens(self) -> int:
        """See ``UnifiedModel``; as many as of an image to be understood."""
        return int(self.config.vision_config.num_image_tokens)

    @property
    def num_codes(self) -> int:
        """See ``UnifiedModel``."""
        return int(self.config.vq_config.num_embeddings)

    def embed(self, batch: Batch) -> Tensor:
        """Return the input embeddings (B, T, H) of text, images to be understood and image tokens."""
        tokens = batch.embedded_image_tokens
        embeds = self.decoder.embed_text(batch.input_ids, batch.task_ids, batch.position_ids)
        modality = self.modality_ids(batch.input_ids, tokens)
        drawn, place = modality == Modality.IMAGE_OUT, modality == Modality.IMAGE_IN
        pictures = 0 if batch.pixel_values is None else len(batch.pixel_values)
        if int(place.sum()) != pictures * self.config.vision_config.num_image_tokens:
            raise ValueError(
                f"{int(place.sum())} image placeholders for {pictures} images of {self.config.vision_config.num_image_tokens} "
                "tokens: every image needs its run of placeholders"
            )
        if batch.pixel_values is not None:
            features = self.model.get_image_features(batch.pixel_values, return_dict=True).pooler_output
            embeds = embeds.masked_scatter(place.unsqueeze(-1), features.to(embeds.dtype))
        generated = self.prepare_embeddings_for_image_generation(tokens.clamp_min(0))
        return torch.where(drawn.unsqueeze(-1), generated.to(embeds.dtype), embeds)

    def embed_image_tokens(self, tokens: Tensor) -> Tensor:
        """See ``UnifiedModel``; transformers' name is the longer one."""
        return self.prepare_embeddings_for_image_generation(tokens)

    def image_logits(self, hidden: Tensor) -> Tensor:
        """See ``UnifiedModel``: a head of its own, apart from the text's."""
        return self.model.generation_head(hidden)

    def image_loss(self, hidden: Tensor, places: Tensor, tokens: Tensor) -> SummedLoss:
        """See ``UnifiedModel``: over the codes alone."""
        return cross_entropy(self.model.generation_head, hidden, places, tokens)

    def render(self, tokens: Tensor) -> Tensor:
        """See ``UnifiedModel``."""
        return self.decode_image_tokens(tokens)


AutoModelForImageTextToText.register(UniJanusConfig, UniJanusForConditionalGeneration)
