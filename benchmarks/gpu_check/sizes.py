"""Models of the GPU check: Janus-Pro's decoder sizes with random weights, structures, and training batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.image_loop import SMALL
from unidecouple.batch import IGNORE, NO_IMAGE_TOKEN, Batch, JointBatch, Task
from unidecouple.models.configuration import UniJanusConfig
from unidecouple.models.tiny import TinySize

_JANUS = TinySize(image_size=384, codes=16384, vision_hidden_size=32, vision_layers=1, vq_latent_channels=32)
SIZES = {
    "1B": replace(_JANUS, hidden_size=2048, num_hidden_layers=24, num_attention_heads=16, intermediate_size=5632),
    "7B": replace(_JANUS, hidden_size=4096, num_hidden_layers=30, num_attention_heads=32, intermediate_size=11008),
}
"""Janus-Pro's images and decoders. The vision tower and the image tokenizer are small: generating tokens needs neither."""

TINY = replace(
    SMALL, image_size=32, hidden_size=32, num_hidden_layers=2, intermediate_size=64, codes=32, vision_hidden_size=16,
    vq_channel_multiplier=(1, 1, 1, 1),
)  # fmt: skip
"""Images of 16 tokens."""

ONE_TASK_MIXTURE = {"ffn": "moe", "num_tasks": 1, "num_experts": 2}
"""What one task uses of UniDecouple: two experts and the shared one, each as wide as the FFN."""

UNIDECOUPLE = {"ffn": "ta_moe", "context_router": True}
LORA = {
    "lora_rank": 16,
    "lora_targets": ["attention", "experts", "shared_expert"],
    "lora_per_task": ["attention", "shared_expert"],
}
STRUCTURES: dict[str, dict[str, Any]] = {
    "dense": {},
    "moe": {"ffn": "moe"},
    "UniDecouple, stage 1": UNIDECOUPLE,
    "UniDecouple, stage 2": UNIDECOUPLE | LORA,
    "typed_moe": {"ffn": "typed_moe", "group_by": "image_out", "group_sizes": [3, 1]},
    "weights per task": {"per_group_layers": [0, 1], "per_group_norm": True, "group_by": "task"},
    "attention within groups": {"per_group_layers": [0], "per_group_attention": "group", "group_by": "modality"},
}
"""Fields of the decoder's configuration, by structure."""


def training_batch(config: UniJanusConfig, rows: int, device: torch.device) -> JointBatch:
    """``rows`` conversations about an image (130 text tokens, 64 of them answers) and ``rows`` images with prompts of 64 tokens."""
    generator, images = torch.Generator(device).manual_seed(0), config.vision_config.num_image_tokens
    words = min(config.text_config.vocab_size, 1000)

    def batch(length: int, task: Task) -> tuple[Tensor, ...]:
        ids = torch.randint(20, words, (rows, length), generator=generator, device=device)
        tasks = torch.full_like(ids, int(task))
        tasks[:, 0] = int(Task.MMU)
        return (
            ids,
            torch.ones_like(ids, dtype=torch.bool),
            tasks,
            torch.full_like(ids, IGNORE),
            torch.full_like(ids, NO_IMAGE_TOKEN),
        )

    ids, mask, tasks, labels, codes = batch(130 + images, Task.MMU)
    ids[:, 10 : 10 + images] = config.image_token_id
    labels[:, -64:] = ids[:, -64:]
    side = config.vision_config.image_size
    pixels = torch.rand(rows, 3, side, side, generator=generator, device=device) * 2 - 1
    understanding = Batch(ids, mask, tasks, labels, codes, pixels)
    ids, mask, tasks, labels, codes = batch(64 + images, Task.T2I)
    codes[:, 64:] = torch.randint(config.vq_config.num_embeddings, (rows, images), generator=generator, device=device)
    return understanding, Batch(ids, mask, tasks, labels, codes)


def packed(batch: Batch, extra: int = 0) -> Batch:
    """The rows of ``batch`` one after the other in one row, as training packs them, and ``extra`` tokens of padding."""
    rows, width = batch.input_ids.shape
    places = torch.arange(width, device=batch.input_ids.device).repeat(rows)

    def row(tensor: Tensor, rest: int) -> Tensor:
        return torch.cat([tensor.flatten(), tensor.new_full((extra,), rest)]).unsqueeze(0)

    return Batch(
        row(batch.input_ids, 0),
        row(batch.attention_mask, 0),
        row(batch.task_ids, 0),
        row(batch.labels, IGNORE),
        row(batch.image_tokens, NO_IMAGE_TOKEN),
        batch.pixel_values,
        row(places, 0),
    )
