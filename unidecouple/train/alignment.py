"""Aligns a vision tower with words before any language model sees it, as SigLIP (arXiv 2303.15343) is aligned before Janus.

Each image token is taught to point at the embeddings of what its patch shows: class, colour, row and column of the board.
It costs half a minute; what it buys is in EXPERIMENTS.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast

from unidecouple.data.sequences import pixels
from unidecouple.data.world.catalog import CLASSES, COLORS
from unidecouple.data.world.scene import Scene, random_scene, render
from unidecouple.models.janus import UniJanusForConditionalGeneration

ROWS, COLUMNS = ("top", "bottom"), ("left", "right")


@dataclass(frozen=True)
class Alignment:
    """Hyperparameters of ``align_vision``; ``temperature`` divides the cosines."""

    steps: int = 1200
    batch_size: int = 32
    learning_rate: float = 1e-3
    temperature: float = 0.1
    seed: int = 3


def align_vision(
    model: UniJanusForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    alignment: Alignment,
    report: Callable[[int, dict[str, float]], None] = lambda step, values: None,
) -> None:
    """Train the vision tower and aligner of ``model`` in place, its word embeddings held.

    ``report`` gets, every 50 steps, the cross-entropy (nats) of finding a patch's class among all classes; the same for its
    colour, row and column.
    """
    rng = np.random.default_rng(alignment.seed)
    directions = F.normalize(model.get_input_embeddings().weight.detach(), dim=-1)
    words = {"class": CLASSES, "color": COLORS, "row": ROWS, "column": COLUMNS}
    targets = {kind: directions[torch.tensor(tokenizer.convert_tokens_to_ids(list(names)))] for kind, names in words.items()}
    weights = [*model.model.vision_model.parameters(), *model.model.aligner.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=alignment.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    model.train()
    for step in range(alignment.steps):
        for group in optimizer.param_groups:
            group["lr"] = alignment.learning_rate * min(1.0, (step + 1) / 50) * (1 - 0.95 * step / alignment.steps)
        scenes = [random_scene(rng, min_objects=2) for _ in range(alignment.batch_size)]
        features = model.model.get_image_features(pixels([render(scene) for scene in scenes]), return_dict=True).pooler_output
        shown = torch.tensor([_shown(scene, round(features.shape[1] ** 0.5)) for scene in scenes])
        drawn = shown[..., 0] >= 0
        pointing = F.normalize(features[drawn], dim=-1)
        losses = {
            kind: F.cross_entropy(pointing @ targets[kind].T / alignment.temperature, shown[drawn][:, place])
            for place, kind in enumerate(words)
        }
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step % 50 == 0 or step == alignment.steps - 1:
            report(step, {kind: loss.item() for kind, loss in losses.items()})
    model.eval()


def _shown(scene: Scene, side: int) -> list[tuple[int, ...]]:
    """Numbers of class, colour, row and column of each of ``side`` x ``side`` patches (raster order), -1 where nothing is drawn."""
    by_cell = {thing.cell: (CLASSES.index(thing.name), COLORS.index(thing.color), *divmod(thing.cell, 2)) for thing in scene.things}
    nothing = (-1,) * 4
    return [by_cell.get(2 * (row * 2 // side) + column * 2 // side, nothing) for row in range(side) for column in range(side)]
