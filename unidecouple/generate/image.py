"""Images from prompts: the image-token loop, with classifier-free guidance in one pass and a seed for each image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from unidecouple.batch import Modality
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.generate.jobs import ImageJob, image_jobs
from unidecouple.generate.padding import check_length, positions
from unidecouple.generate.prompts import prompt_inputs
from unidecouple.generate.sampler import Sampler, uniforms
from unidecouple.generate.sampling import SamplingParams
from unidecouple.models.base import UnifiedModel
from unidecouple.models.deltas import drawn_labels


def draw(
    model: UnifiedModel,
    builder: SequenceBuilder,
    prompts: Sequence[str],
    num_images: int = 1,
    seed: int = 0,
    sampling: SamplingParams | None = None,
) -> list[list[np.ndarray]]:
    """Generate ``num_images`` images per prompt, uint8 (H, W, 3). Image j of prompt i depends on (seed, i, j) only."""
    images = decode_images(
        model, draw_tokens(model, builder, image_jobs(builder, prompts, num_images, seed, sampling or SamplingParams()))
    )
    return [list(images[i * num_images : (i + 1) * num_images]) for i in range(len(prompts))]


@torch.no_grad()
def draw_tokens(
    model: UnifiedModel, builder: SequenceBuilder, jobs: Sequence[ImageJob], batch_size: int = 256, routing: str | None = None
) -> Tensor:
    """Generate the image tokens of ``jobs``: (jobs, tokens per image).

    Args:
        model: of any base family and structure.
        builder: its sequence builder.
        jobs: what to generate.
        batch_size: images generated together; they do not depend on it.
        routing: "label" forces the generation experts; None leaves the choice to the model's configuration.

    Raises:
        ValueError: a prompt leaves no room for the image.
    """
    batches = [jobs[start : start + batch_size] for start in range(0, len(jobs), batch_size)]
    return torch.cat([_draw_batch(model, builder, batch, routing) for batch in batches])


@torch.no_grad()
def decode_images(model: UnifiedModel, tokens: Tensor) -> np.ndarray:
    """Decode image tokens (N, tokens) to uint8 images (N, H, W, 3).

    Each image is decoded alone: convolutions over a batch round in another order, and an image's bytes would depend on those
    beside it.
    """
    return np.concatenate([to_bytes(model.render(one)) for one in tokens.split(1)])


def to_bytes(pictures: Tensor) -> np.ndarray:
    """Turn (N, H, W, 3) in [-1, 1] into uint8, truncated: ``clip((x + 1) / 2 * 255, 0, 255)`` in float32.

    As deepseek-ai/Janus (``generation_inference.py``); transformers' Janus and Emu3 processors truncate, too.
    """
    return ((pictures.float() + 1) / 2 * 255).clamp(0, 255).to(torch.uint8).cpu().numpy()


def _draw_batch(model: UnifiedModel, builder: SequenceBuilder, jobs: Sequence[ImageJob], routing: str | None) -> Tensor:
    guided = [number for number, job in enumerate(jobs) if len(job.prompts) > 1]
    rows = [job.prompts[0] for job in jobs] + [jobs[number].prompts[1] for number in guided]
    new = model.num_image_tokens * (builder.picture.columns + len(builder.row_end)) // builder.picture.columns
    check_length(max(len(ids) for ids, _ in rows), new, model.config.text_config.max_position_embeddings)
    read = prompt_inputs(model, builder, rows)
    length = model.num_image_tokens
    uniform = torch.stack([uniforms(job.seed, length) for job in jobs]).to(model.device)
    sample = Sampler([job.sampling for job in jobs], model.device)
    uncond = torch.arange(len(jobs), device=model.device)
    uncond[guided] = torch.arange(len(jobs), len(rows), device=model.device)
    ends = torch.tensor([builder.row_end] * len(rows), dtype=torch.long, device=model.device)
    row_end = model.decoder.embed_text(ends, *drawn_labels(ends))
    cache, chosen = DynamicCache(config=model.config.text_config), []
    embeds, mask, position = read.embeds, read.mask, read.position_ids
    task, modality = read.task_ids, read.modality_ids
    for step in range(length):
        out = model.decoder(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position,
            cache=cache,
            task_ids=task,
            modality_ids=modality,
            routing=routing,
        )
        logits = model.image_logits(out.last_hidden_state[:, -1]).float()
        token = sample(sample.guide(logits[: len(jobs)], logits[uncond]), uniform[:, step])
        chosen.append(token)
        embeds = model.embed_image_tokens(torch.cat([token, token[guided]]).unsqueeze(1))
        modality = torch.full((1, 1), int(Modality.IMAGE_OUT), device=model.device)
        if (step + 1) % builder.picture.columns == 0:
            embeds = torch.cat([embeds, row_end], 1)  # what ends a row is not the model's to choose
            modality = torch.tensor([[Modality.IMAGE_OUT, Modality.TEXT]], device=model.device).expand(len(rows), -1)
        new = embeds.shape[1]
        mask = torch.cat([mask, mask.new_ones(len(rows), new)], 1)
        position, task = positions(mask)[:, -new:], task[:, -1:]
    return torch.stack(chosen, 1)
