"""Interface of a base family to training, generation and diagnosis: a unified model with our text decoder.

One file per family beside this one. Methods change the decoder, which all families share.
"""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from unidecouple.batch import NO_IMAGE_TOKEN, Batch, JointBatch, Modality, Task
from unidecouple.models.attention import SequenceBlocks
from unidecouple.models.decoder import DecoderOutput, UniLlamaModel
from unidecouple.models.interaction import CrossModalMask, Interaction, cross_modal_mask, intensities
from unidecouple.models.router import Routing
from unidecouple.models.shield import SharedExpertGradScale

LOGITS_AT_ONCE = 2048
"""Number of targets whose logits are in memory together: 0.8 GB in float32 over Janus-Pro's vocabulary of 102,400."""


@dataclass
class SummedLoss(ModelOutput):
    """Cross-entropy of one task over a joint batch: sum in nats and number of targets, both scalar tensors."""

    total: Tensor
    count: Tensor = None  # type: ignore[assignment]  # ModelOutput wants this default; it is always given

    @property
    def mean(self) -> Tensor:
        """Mean cross-entropy in nats per token; zero, but in the graph, if the task is absent."""
        return self.total / self.count.clamp_min(1)


@dataclass
class JointOutput(ModelOutput):
    """Losses and routing of one training step.

    Attributes:
        mmu: cross-entropy of answer tokens (eq. 2's L_mmu, before averaging).
        t2i: cross-entropy of discrete image tokens (L_t2i).
        routing: per micro-batch, one ``Routing`` per layer.
        interaction: per micro-batch, the attention of its samples to the other modality; None unless requested.
        divergence: KL divergence in nats from the model without its low-rank updates, at one task's targets; None unless requested.
    """

    mmu: SummedLoss
    t2i: SummedLoss = None  # type: ignore[assignment]  # ModelOutput wants these defaults; both are always given
    routing: tuple[tuple[Routing, ...], ...] = None  # type: ignore[assignment]
    interaction: tuple[Interaction, ...] | None = None
    divergence: SummedLoss | None = None

    def loss(self, task: Task) -> Tensor:
        """Return the mean cross-entropy of ``task``."""
        part = self.mmu if task is Task.MMU else self.t2i
        return part.mean


class UnifiedModel(PreTrainedModel, metaclass=ABCMeta):
    """A model of transformers for image understanding and text-to-image generation with one ``UniLlamaModel``.

    A family inherits from this class and from the class of transformers, and keeps the module names of the latter: the decoder is
    ``model.language_model``, the image tokenizer ``model.vqmodel`` and the text head ``lm_head``. Its ``forward`` takes the
    arguments of transformers, ``task_ids`` and ``routing``; or a joint ``batch=``, for which it returns ``joint(batch)``.
    """

    @property
    def decoder(self) -> UniLlamaModel:
        """The language model that both tasks share."""
        return self.model.language_model

    @property
    @abstractmethod
    def num_image_tokens(self) -> int:
        """Discrete tokens of a generated image."""

    @property
    @abstractmethod
    def num_codes(self) -> int:
        """Rows of the image tokenizer's codebook."""

    @abstractmethod
    def embed(self, batch: Batch) -> Tensor:
        """Return the input embeddings (B, T, H) of text, images to be understood and image tokens to be generated."""

    @abstractmethod
    def embed_image_tokens(self, tokens: Tensor) -> Tensor:
        """Return the input embeddings (B, N, H) of image tokens to be generated, (B, N) int64."""

    @abstractmethod
    def image_logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (..., codes) of the next image token from the decoder's states (..., H)."""

    @abstractmethod
    def image_loss(self, hidden: Tensor, places: Tensor, tokens: Tensor) -> SummedLoss:
        """Return the cross-entropy of image ``tokens`` (M,) from the states (B, T, H) at ``places`` (M,), each before its token."""

    @abstractmethod
    def render(self, tokens: Tensor) -> Tensor:
        """Decode image tokens (N, tokens per image) to images (N, H, W, 3) with values of about -1 to 1."""

    def decode_batch(self, batch: Batch, routing: str | None = None, **kwargs: Any) -> DecoderOutput:
        """Return the hidden states and routing of one batch.

        Padding is on the right and needs no mask, since attention is causal. Packed rows need no mask either: attention runs
        block by block over their sequences (``SequenceBlocks``).
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not kwargs.get("routers_only")):
            embeds = self.embed(batch)
        lengths = batch.places.lengths
        return self.decoder(
            inputs_embeds=embeds,
            position_ids=batch.position_ids,
            task_ids=batch.task_ids,
            modality_ids=self.modality_ids(batch.input_ids, batch.embedded_image_tokens),
            routing=routing,
            blocks=SequenceBlocks.of(lengths, embeds.device) if lengths else None,
            **kwargs,
        )

    def modality_ids(self, input_ids: Tensor, image_tokens: Tensor | None = None) -> Tensor:
        """Return the ``Modality`` of each token, int64, from ids with image placeholders and image tokens to be generated."""
        seen = torch.where(input_ids == self.config.image_token_id, int(Modality.IMAGE_IN), int(Modality.TEXT))
        return seen if image_tokens is None else seen.masked_fill(image_tokens != NO_IMAGE_TOKEN, int(Modality.IMAGE_OUT))

    def spans(self, batch: Batch) -> CrossModalMask:
        """Return the query and key tokens of attention between modalities in ``batch``; see ``cross_modal_mask``.

        Raises:
            ValueError: rows are packed, and the attention implementation separates their sequences without a mask.
        """
        attention = self.config.text_config._attn_implementation
        if batch.position_ids is not None and attention not in ("sdpa", "eager"):
            raise ValueError(
                f"attention between modalities cannot be measured in packed rows with attn_implementation={attention!r}: "
                "use 'sdpa', or do not pack"
            )
        seen = (batch.input_ids == self.config.image_token_id) & (batch.image_tokens == NO_IMAGE_TOKEN)
        if batch.source_tokens is not None:
            seen |= batch.source_tokens != NO_IMAGE_TOKEN  # no words of the prompt
        return cross_modal_mask(batch, seen)

    def joint(
        self,
        joint: JointBatch,
        routing: str | None,
        interaction: bool = False,
        shield: Sequence[SharedExpertGradScale] | None = None,
        balanced: bool = True,
        distill: Task | None = None,
    ) -> JointOutput:
        """Return both tasks' losses over a joint batch, and the routing of its tokens.

        Args:
            joint: the batch.
            routing: "learned" or "label"; None takes the configuration's.
            interaction: also measure the attention of each sample to the other modality.
            shield: one per micro-batch; scales the gradient of some tokens into the shared experts.
            balanced: whether a loss uses the probabilities of the expert routers. If not, batches without targets (router samples)
                end at the last task router and give gradients to the task routers only.
            distill: also measure the divergence at the targets of this task; see ``JointOutput``.

        Raises:
            ValueError: ``distill`` is given and the model has no low-rank updates that a token's group chooses, or others besides.
        """
        task_routed = self.config.text_config.ffn == "ta_moe"
        mmu, t2i, decisions, looks, diverged = [], [], [], [], []
        for number, batch in enumerate(joint):
            spans = self.spans(batch) if interaction else None
            decoded = self.decode_batch(
                batch,
                routing,
                routers_only=task_routed and not (balanced or interaction) and not any(batch.num_targets),
                key_sets=None if spans is None else spans.keys,
                shield=None if shield is None else shield[number],
            )
            hidden, places = decoded.last_hidden_state, batch.places
            mmu.append(cross_entropy(self.lm_head, hidden, places.before_text, places.text, LOGITS_AT_ONCE))
            t2i.append(self.image_loss(hidden, places.before_image, places.image))
            decisions.append(decoded.routing or ())
            if spans is not None and decoded.key_set_shares is not None:
                looks.append(intensities(decoded.key_set_shares, spans))
            if distill is not None:
                diverged.append(self._divergence(batch, routing, hidden, distill))
        return JointOutput(
            mmu=_add(mmu),
            t2i=_add(t2i),
            routing=tuple(decisions),
            interaction=tuple(looks) if interaction else None,
            divergence=_add(diverged) if diverged else None,
        )

    def _divergence(self, batch: Batch, routing: str | None, hidden: Tensor, task: Task) -> SummedLoss:
        """KL(without updates || with them), summed over the targets of ``task``; ``hidden`` are the states with them."""
        if not self.config.text_config.switchable_updates:
            raise ValueError(
                f"self_distillation on a decoder that is {self.config.text_config.described}: it needs low-rank updates that can "
                "be switched off, all of them per modality (structure kind: mode) or all per task (lora.per_task)"
            )
        places = batch.places.before_text if task is Task.MMU else batch.places.before_image
        head = self.lm_head if task is Task.MMU else self.image_logits
        reference = hidden.detach()
        if len(places):
            with torch.no_grad():
                reference = self.decode_batch(batch, routing, updates=False).last_hidden_state
        return kl_divergence(head, hidden, reference, places, LOGITS_AT_ONCE)


def cross_entropy(
    head: Callable[[Tensor], Tensor], hidden: Tensor, places: Tensor, targets: Tensor, max_logits: int | None = None
) -> SummedLoss:
    """Return the summed cross-entropy of ``head`` at some tokens.

    Without a target, the head alone stays in the graph: zeros need not travel back through the decoder. Where there are more than
    ``max_logits``, logits are made for that many at a time, and once more in the backward pass, so that they never all exist.

    Args:
        head: maps states to logits.
        hidden: (B, T, H) states.
        places: (M,) int64, row * T + column, of the tokens whose next token is a target.
        targets: (M,) int64.
        max_logits: targets whose logits exist together; None: all.
    """
    count = torch.full((), len(targets), device=hidden.device)
    states = hidden if len(targets) else hidden.detach()
    rows = states.flatten(0, 1).index_select(0, places)
    if max_logits is None or len(rows) <= max_logits:
        return SummedLoss(total=_summed(head, rows, targets), count=count)
    pieces = zip(rows.split(max_logits), targets.split(max_logits), strict=True)
    total = torch.stack([checkpoint(_summed, head, *piece, use_reentrant=False) for piece in pieces]).sum()
    return SummedLoss(total=total, count=count)


def kl_divergence(
    head: Callable[[Tensor], Tensor], hidden: Tensor, reference: Tensor, places: Tensor, max_logits: int
) -> SummedLoss:
    """Summed KL(reference || model) of the distributions that ``head`` makes of states (B, T, H), in nats.

    The reference gets no gradient. As of ``cross_entropy``, without a place the head alone stays in the graph, and the logits of
    more than ``max_logits`` places never all exist.
    """
    count = torch.full((), len(places), device=hidden.device)
    rows = (hidden if len(places) else hidden.detach()).flatten(0, 1).index_select(0, places)
    fixed = reference.flatten(0, 1).index_select(0, places)
    if len(rows) <= max_logits:
        return SummedLoss(total=_diverged(head, rows, fixed), count=count)
    pieces = zip(rows.split(max_logits), fixed.split(max_logits), strict=True)
    total = torch.stack([checkpoint(_diverged, head, *piece, use_reentrant=False) for piece in pieces]).sum()
    return SummedLoss(total=total, count=count)


def _diverged(head: Callable[[Tensor], Tensor], rows: Tensor, reference: Tensor) -> Tensor:
    with torch.no_grad():
        wanted = head(reference).float().log_softmax(-1)
    return F.kl_div(head(rows).float().log_softmax(-1), wanted, reduction="sum", log_target=True)


def _summed(head: Callable[[Tensor], Tensor], rows: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(head(rows).float(), wanted, reduction="sum")


def _add(parts: list[SummedLoss]) -> SummedLoss:
    return SummedLoss(total=torch.stack([p.total for p in parts]).sum(), count=torch.stack([p.count for p in parts]).sum())
