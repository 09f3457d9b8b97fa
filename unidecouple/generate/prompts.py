"""Prompts for images as inputs of the decoder, the blocks of their source images among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unidecouple.batch import IGNORE, NO_IMAGE_TOKEN, Batch, Modality, Task
from unidecouple.data.sequences import SequenceBuilder, pixels
from unidecouple.generate.padding import left_pad, positions
from unidecouple.models.base import UnifiedModel
from unidecouple.models.vq import encode_image_tokens


@dataclass(frozen=True)
class PromptInputs:
    """Prompts, left-padded: B prompts of up to T tokens.

    Attributes:
        embeds: (B, T, H).
        mask: (B, T) int64, 0 on padding.
        position_ids: (B, T) int64.
        task_ids: (B, T) int64; the BOS counts as understanding, as in training.
        modality_ids: (B, T) or (1, 1) int64.
    """

    embeds: Tensor
    mask: Tensor
    position_ids: Tensor
    task_ids: Tensor
    modality_ids: Tensor


@torch.no_grad()
def prompt_inputs(
    model: UnifiedModel, builder: SequenceBuilder, prompts: Sequence[tuple[list[int], Sequence[np.ndarray]]]
) -> PromptInputs:
    """Embed ``prompts`` as training embeds them.

    Args:
        model: of any base family.
        builder: its sequence builder.
        prompts: ids and the source images of their placeholders, uint8 (H, W, 3) of the model's size.

    Raises:
        ValueError: a prompt has other images than placeholders.
    """
    ids, mask = left_pad([prompt for prompt, _ in prompts], builder.tokenizer.pad_token_id, model.device)
    place = positions(mask)
    task = torch.where(place == 0, int(Task.MMU), int(Task.T2I))
    pictures = [picture for _, shown in prompts for picture in shown]
    if not pictures:
        text = torch.full((1, 1), int(Modality.TEXT), device=ids.device)
        return PromptInputs(model.decoder.embed_text(ids, task, place), mask, place, task, text)
    none = torch.full_like(ids, NO_IMAGE_TOKEN)
    batch = Batch(
        input_ids=ids,
        attention_mask=mask.bool(),
        task_ids=task,
        labels=torch.full_like(ids, IGNORE),
        image_tokens=none,
        pixel_values=pixels(pictures).to(model.device, model.dtype),
        position_ids=place,
        source_tokens=_source_tokens(model, builder, ids, pictures, none),
    )
    return PromptInputs(model.embed(batch), mask, place, task, model.modality_ids(ids, batch.embedded_image_tokens))


def _source_tokens(
    model: UnifiedModel, builder: SequenceBuilder, ids: Tensor, pictures: Sequence[np.ndarray], none: Tensor
) -> Tensor:
    """(B, T) image tokens of ``pictures`` at their places; each different image is encoded once, and alone."""
    where = torch.tensor([builder.source_mask(row) for row in ids.tolist()], device=ids.device)
    if not where.any():
        return none
    vq, codes = model.model.vqmodel, dict[int, Tensor]()
    for picture in pictures:
        if id(picture) not in codes:
            codes[id(picture)] = encode_image_tokens(vq, pixels([picture]).to(vq.quantize.embedding.weight))[0]
    return none.masked_scatter(where, torch.cat([codes[id(picture)] for picture in pictures]))
