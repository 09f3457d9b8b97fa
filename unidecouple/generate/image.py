"""Pictures from prompts: the image-token loop, with classifier-free guidance in one pass and a seed for each picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from unidecouple import bounds
from unidecouple.batch import Modality, Task
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.generate.padding import check_length, left_pad, positions
from unidecouple.generate.sampler import Choice, Sampler, check_guidance, uniforms
from unidecouple.models.base import UnifiedModel

_Job = tuple[str, tuple[int, ...]]  # prompt, seed of its picture


@dataclass(frozen=True)
class Sampling:
    """How image tokens are drawn.

    Attributes:
        guidance_scale: w of ``uncond + w (cond - uncond)``; 1 is no guidance (and costs no second row).
        temperature: 0 is greedy.
        top_k, top_p: see ``Choice``.
        batch_size: pictures drawn together; pictures do not depend on it.
        routing: "label" forces the generation experts; None leaves the choice to the model's configuration.
        negative_prompt: what guidance leads away from; None is the hidden prompt.
    """

    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    batch_size: int = 256
    routing: str | None = None
    negative_prompt: str | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_guidance(self)
        bounds.at_least(1, self, "batch_size")
        _ = self.choice  # checks the others

    @property
    def choice(self) -> Choice:
        """How each token is chosen once guidance is applied."""
        return Choice(self.temperature, self.top_k, self.top_p)


def draw(
    model: UnifiedModel,
    builder: SequenceBuilder,
    prompts: Sequence[str],
    num_images: int = 1,
    seed: int = 0,
    sampling: Sampling | None = None,
) -> list[list[np.ndarray]]:
    """Draw ``num_images`` pictures for each prompt: uint8 (H, W, 3). Picture j of prompt i depends on (seed, i, j) only."""
    tokens = draw_tokens(model, builder, prompts, num_images, seed, sampling or Sampling())
    pictures = decode_pictures(model, tokens)
    return [list(pictures[i * num_images : (i + 1) * num_images]) for i in range(len(prompts))]


@torch.no_grad()
def draw_tokens(
    model: UnifiedModel,
    builder: SequenceBuilder,
    prompts: Sequence[str],
    num_images: int,
    seed: int,
    sampling: Sampling,
    first: int = 0,
) -> Tensor:
    """Image tokens (prompts x num_images, tokens of an image), prompt-major; ``first`` is the first prompt's number."""
    numbered = enumerate(prompts, first)
    jobs: list[_Job] = [(prompt, (seed, number, copy)) for number, prompt in numbered for copy in range(num_images)]
    parts = [
        _draw_batch(model, builder, jobs[start : start + sampling.batch_size], sampling)
        for start in range(0, len(jobs), sampling.batch_size)
    ]
    return torch.cat(parts)


@torch.no_grad()
def decode_pictures(model: UnifiedModel, tokens: Tensor) -> np.ndarray:
    """Decode image tokens (N, tokens) to uint8 pictures (N, H, W, 3).

    Each picture is decoded alone: convolutions over a batch round in another order, and a picture's bytes would depend on those
    beside it.
    """
    return np.concatenate([to_bytes(model.render(one)) for one in tokens.split(1)])


def to_bytes(pictures: Tensor) -> np.ndarray:
    """Turn (N, H, W, 3) in [-1, 1] into uint8, truncated: ``clip((x + 1) / 2 * 255, 0, 255)`` in float32.

    As deepseek-ai/Janus (``generation_inference.py``); transformers' Janus and Emu3 processors truncate, too.
    """
    return ((pictures.float() + 1) / 2 * 255).clamp(0, 255).to(torch.uint8).cpu().numpy()


def _draw_batch(model: UnifiedModel, builder: SequenceBuilder, jobs: list[_Job], sampling: Sampling) -> Tensor:
    guided = sampling.guidance_scale != 1.0
    rows = [builder.generation_prompt(prompt) for prompt, _ in jobs]
    if guided:
        away = sampling.negative_prompt
        rows += [builder.generation_prompt(prompt if away is None else away, dropped=away is None) for prompt, _ in jobs]
    new = model.num_image_tokens * (builder.picture.columns + len(builder.row_end)) // builder.picture.columns
    check_length(max(map(len, rows)), new, model.config.text_config.max_position_embeddings)
    ids, mask = left_pad(rows, builder.tokenizer.pad_token_id, model.device)
    length = model.num_image_tokens
    uniform = torch.stack([uniforms(seed, length) for _, seed in jobs]).to(model.device)
    sample = Sampler([sampling.choice] * len(jobs), model.device)
    row_end = model.get_input_embeddings()(torch.tensor([builder.row_end] * len(rows), dtype=torch.long, device=model.device))
    embeds, position, chosen = model.get_input_embeddings()(ids), positions(mask), []
    cache = DynamicCache(config=model.config.text_config)
    task = torch.where(position == 0, int(Task.MMU), int(Task.T2I))  # the BOS counts as understanding, as in training
    modality = torch.full((1, 1), int(Modality.TEXT), device=model.device)
    for step in range(length):
        out = model.decoder(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position,
            cache=cache,
            task_ids=task,
            modality_ids=modality,
            routing=sampling.routing,
        )
        logits = model.image_logits(out.last_hidden_state[:, -1]).float()
        if guided:
            cond, uncond = logits.chunk(2)
            logits = uncond + sampling.guidance_scale * (cond - uncond)
        token = sample(logits, uniform[:, step])
        chosen.append(token)
        embeds = model.embed_image_tokens((torch.cat([token, token]) if guided else token).unsqueeze(1))
        modality = torch.full((1, 1), int(Modality.IMAGE_OUT), device=model.device)
        if (step + 1) % builder.picture.columns == 0:
            embeds = torch.cat([embeds, row_end], 1)  # what ends a row is not the model's to choose
            modality = torch.tensor([[Modality.IMAGE_OUT, Modality.TEXT]], device=model.device).expand(len(rows), -1)
        new = embeds.shape[1]
        mask = torch.cat([mask, mask.new_ones(len(rows), new)], 1)
        position, task = positions(mask)[:, -new:], task[:, -1:]
    return torch.stack(chosen, 1)
