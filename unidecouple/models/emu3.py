"""Emu3 (arXiv 2409.18869) with our decoder: one vocabulary of words and image tokens, one head, images in and out as tokens.

A subclass of transformers' ``Emu3ForConditionalGeneration``, whose decoder is a Llama. It is named ``language_model`` here, as in
Janus, ``text_model`` there. What differs from the published training: images are squares of one size, and dropout (0.1 on
attention and on what layers add) is off, since a resumed or divided step would not be the same with it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, Cache, Emu3Config, Emu3ForConditionalGeneration
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.emu3.configuration_emu3 import Emu3VQVAEConfig
from transformers.models.emu3.modeling_emu3 import Emu3ImageVocabularyMapping, Emu3Model, Emu3PreTrainedModel, Emu3VQVAE

from unidecouple.batch import NO_IMAGE_TOKEN, Batch, JointBatch, Task
from unidecouple.models.base import LOGITS_AT_ONCE, JointOutput, SummedLoss, UnifiedModel, cross_entropy
from unidecouple.models.decoder import UniLlamaModel, one_cache
from unidecouple.models.deltas import HEAD, attach_deltas, drawn_labels
from unidecouple.models.lora import LoraLinear
from unidecouple.models.schema import SCHEMA_VERSION, versioned
from unidecouple.models.vq import encode_image_tokens

CODE_NAME = "<|visual token {code:06d}|>"
"""Name of a code in the vocabulary."""

ROW_END = "<|extra_200|>"
"""Stands after each row of an image's tokens (EOL)."""


@versioned({}, dict)
@strict
class UniEmu3Config(Emu3Config):
    """Emu3 with our decoder: ``text_config`` is a ``UniLlamaConfig``, the rest is transformers' own.

    Attributes:
        image_size: pixels a side of every image; Emu3 was trained on areas around 720 x 720. Ours: its own images may have
            any sides.
    """

    model_type = "unidecouple_emu3"
    sub_configs_defaults = {
        "vq_config": Emu3VQVAEConfig,
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="unidecouple_llama"),
    }

    text_config: Any = None  # transformers' own would have its decoder's only
    image_size: int = 720
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        names = self.vocabulary_map or {}
        missing = [name for name in ("<image>", ROW_END, CODE_NAME.format(code=0)) if name not in names]
        if missing:
            raise ValueError(f"vocabulary_map has no {missing[0]!r}: it must be that of Emu3's tokenizer")
        first, patch = self.first_code_id, self.patch_size
        wrong = next((code for code in range(self.num_codes) if names.get(CODE_NAME.format(code=code)) != first + code), None)
        if wrong is not None:
            raise ValueError(
                f"vocabulary_map has {CODE_NAME.format(code=wrong)!r} elsewhere than at {first + wrong}, after the others"
            )
        if self.image_size < patch or self.image_size % patch:
            raise ValueError(f"image_size={self.image_size} is no multiple of the {patch} pixels a side of an image token")

    @property
    def patch_size(self) -> int:
        """Pixels a side of one image token."""
        return int(2 ** (len(self.vq_config.channel_multiplier) - 1))

    @property
    def side(self) -> int:
        """Rows of an image, and tokens a row."""
        return self.image_size // self.patch_size

    @property
    def num_codes(self) -> int:
        """Rows of the image tokenizer's codebook."""
        return int(self.vq_config.codebook_size)

    @property
    def first_code_id(self) -> int:
        """Id of code 0 in the vocabulary; the others follow in order."""
        return int((self.vocabulary_map or {})[CODE_NAME.format(code=0)])


class UniEmu3Model(Emu3Model):
    """``Emu3Model`` over ``UniLlamaModel``."""

    config: UniEmu3Config
    config_class = UniEmu3Config

    def __init__(self, config: UniEmu3Config) -> None:
        Emu3PreTrainedModel.__init__(self, config)  # Emu3Model's own would build its decoder first
        self.language_model = UniLlamaModel._from_config(config.text_config)
        self.vqmodel = Emu3VQVAE._from_config(config.vq_config)
        self.vocabulary_mapping = Emu3ImageVocabularyMapping(config.vocabulary_map)
        self.post_init()

    @property
    def text_model(self) -> UniLlamaModel:
        """What transformers' code calls the decoder."""
        return self.language_model


class UniEmu3ForConditionalGeneration(UnifiedModel, Emu3ForConditionalGeneration):
    """Emu3 whose decoder is ``UniLlamaModel``.

    Called with ``batch=`` it returns a ``JointOutput``; called as transformers' Emu3 it behaves as that does, with ``task_ids``
    and ``routing`` as further arguments.
    """

    config: UniEmu3Config
    config_class = UniEmu3Config
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: UniEmu3Config) -> None:
        Emu3PreTrainedModel.__init__(self, config)
        self.model = UniEmu3Model(config)
        text = config.text_config
        self.lm_head = LoraLinear(text.hidden_size, text.vocab_size, bias=False, groups=0, rank=0, scale=1.0)
        attach_deltas(self, text, HEAD)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        task_ids: Tensor | None = None,
        modality_ids: Tensor | None = None,
        routing: str | None = None,
        batch: JointBatch | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | JointOutput:
        """Run one forward pass.

        Args:
            input_ids, pixel_values, attention_mask, position_ids, cache, inputs_embeds, use_cache, labels,
                logits_to_keep: as in transformers' Emu3.
            image_sizes: (N, 2) heights and widths in pixels; by default all of ``pixel_values``.
            task_ids: (B, T), (B, 1) or (1, 1) int64 tasks of the tokens.
            modality_ids: the same of ``Modality``; by default placeholders in ``input_ids`` are images, and all else is text.
            routing: "learned" or "label", by default the configuration's.
            batch: a joint batch; then all other tensors are taken from it.
            past_key_values: what transformers before 5.24 calls ``cache``.
            kwargs: passed on to transformers' Emu3; with ``batch``, to ``joint``.
        """
        if batch is not None:
            return self.joint(batch, routing, **kwargs)
        if modality_ids is None and input_ids is not None:
            modality_ids = self.modality_ids(input_ids)
        if pixel_values is not None and image_sizes is None:
            image_sizes = torch.tensor([pixel_values.shape[-2:]] * len(pixel_values))
        return super().forward(
            input_ids,  # by place: the cache's name is not the same in all releases of transformers
            pixel_values,
            image_sizes,
            attention_mask,
            position_ids,
            one_cache(cache, past_key_values),
            inputs_embeds,
            use_cache,
            labels,
            logits_to_keep,
            task_ids=task_ids,
            modality_ids=modality_ids,
            routing=routing,
            **kwargs,
        )

    @property
    def num_image_tokens(self) -> int:
        """See ``UnifiedModel``; ends of rows are no image tokens."""
        return self.config.side**2

    @property
    def num_codes(self) -> int:
        """See ``UnifiedModel``."""
        return self.config.num_codes

    def embed(self, batch: Batch) -> Tensor:
        """See ``UnifiedModel``: all are rows of one table; images to be understood are encoded here."""
        drawn = batch.image_tokens != NO_IMAGE_TOKEN
        ids = torch.where(drawn, self._ids(batch.image_tokens), batch.input_ids)
        place = (batch.input_ids == self.config.image_token_id) & ~drawn
        pictures = 0 if batch.pixel_values is None else len(batch.pixel_values)
        tokens = self.config.side * (self.config.side + 1)
        if int(place.sum()) != pictures * tokens:
            raise ValueError(
                f"{int(place.sum())} image placeholders for {pictures} images of {tokens} tokens: every image needs its run "
                "of placeholders, one more a row than it has image tokens"
            )
        if batch.pixel_values is not None:
            ids = ids.masked_scatter(place, self._shown(batch.pixel_values))
        return self.decoder.embed_text(ids, batch.task_ids, batch.position_ids)

    def embed_image_tokens(self, tokens: Tensor) -> Tensor:
        """See ``UnifiedModel``."""
        return self.decoder.embed_text(self._ids(tokens), *drawn_labels(tokens))

    def image_logits(self, hidden: Tensor) -> Tensor:
        """See ``UnifiedModel``: the image's part of the one head."""
        first = self.config.first_code_id
        own = self._own_head()
        return F.linear(hidden, (self.lm_head.weight if own is None else own)[first : first + self.num_codes])

    def image_loss(self, hidden: Tensor, places: Tensor, tokens: Tensor) -> SummedLoss:
        """See ``UnifiedModel``: over the whole vocabulary, at image tokens only (baaivision/Emu3, train/datasets.py).

        Ends of rows bear no loss there, either: generation is forced to them.
        """
        own = self._own_head()
        head: Callable[[Tensor], Tensor] = self.lm_head if own is None else partial(F.linear, weight=own)
        return cross_entropy(head, hidden, places, self._ids(tokens), LOGITS_AT_ONCE)

    def render(self, tokens: Tensor) -> Tensor:
        """See ``UnifiedModel``."""
        return self.model.vqmodel.decode(tokens.view(-1, self.config.side, self.config.side)).permute(0, 2, 3, 1)

    def _own_head(self) -> Tensor | None:
        """Return the head (vocabulary, H) of generation alone (``task_deltas``); None where it has the text's."""
        own = dict(self.lm_head.deltas.items()).get(Task.T2I.key)
        return None if own is None else own.get_parameter("weight")

    def _ids(self, tokens: Tensor) -> Tensor:
        """Ids in the vocabulary of image tokens; any id where there is none."""
        return tokens.clamp_min(0) + self.config.first_code_id

    def _shown(self, pixel_values: Tensor) -> Tensor:
        """Ids (N, rows * (columns + 1)) of images to be understood, in full precision as those to be drawn are encoded."""
        size = (self.config.image_size, self.config.image_size)
        if pixel_values.shape[-2:] != size:
            raise ValueError(f"images of {tuple(pixel_values.shape[-2:])} pixels, but this model's are of image_size={size[0]}")
        with torch.autocast(pixel_values.device.type, enabled=False):
            codes = encode_image_tokens(self.model.vqmodel, pixel_values)
        rows = self._ids(codes).unflatten(1, (-1, self.config.side))
        return F.pad(rows, (0, 1), value=(self.config.vocabulary_map or {})[ROW_END])


AutoConfig.register("unidecouple_emu3", UniEmu3Config)
AutoModelForImageTextToText.register(UniEmu3Config, UniEmu3ForConditionalGeneration)
