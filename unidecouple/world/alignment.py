"""Align the adaptors of both tasks with word embeddings before the language model is trained on them.

The vision tower is aligned as SigLIP (arXiv 2303.15343) is before Janus; the generation side's adaptors and image head as in
Janus-Pro's first stage (arXiv 2501.17811, section 2.2), here without the decoder (ours). Both take a minute; their effect is in
docs/experiments/word-alignment.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from unidecouple import bounds
from unidecouple.data.sequences import pixels
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.vq import encode_image_tokens
from unidecouple.world.catalog import CLASSES, COLORS
from unidecouple.world.scene import SIZES, Scene, SceneObject, random_scene, render

WORDS: dict[str, Sequence[str]] = {"class": CLASSES, "color": COLORS, "row": ("top", "bottom"), "column": ("left", "right")}
LossCallback = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Alignment:
    """Hyperparameters of one alignment; ``temperature`` divides the cosines."""

    steps: int = 1200
    batch_size: int = 32
    learning_rate: float = 1e-3
    temperature: float = 0.1
    seed: int = 3

    def __post_init__(self) -> None:
        bounds.above(0, self, "learning_rate", "temperature")
        bounds.at_least(0, self, "steps", "seed")
        bounds.at_least(1, self, "batch_size")


def align_vision(
    model: UniJanusForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, alignment: Alignment, report: LossCallback
) -> None:
    """Train the vision tower and aligner of ``model`` in place, with frozen word embeddings.

    Each image token is trained to match the embeddings of what its patch shows: class, colour, row and column of the board.
    ``report`` gets, every 50 steps, the cross-entropy (nats) of finding a patch's class among all classes; the same for its
    colour, row and column.
    """
    rng = np.random.default_rng(alignment.seed)
    targets = _directions(model, tokenizer)

    def losses() -> dict[str, Tensor]:
        scenes = [random_scene(rng, min_objects=2) for _ in range(alignment.batch_size)]
        features = model.model.get_image_features(pixels([render(scene) for scene in scenes]), return_dict=True).pooler_output
        shown = _shown(scenes, round(features.shape[1] ** 0.5), _place_on_board)
        drawn = shown[..., 0] >= 0
        return _pointing(features[drawn], shown[drawn], targets, alignment.temperature)

    _fit([model.model.vision_model, model.model.aligner], alignment, losses, report)


def align_generation(
    model: UniJanusForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, alignment: Alignment, report: LossCallback
) -> None:
    """Train embeddings and aligner of image tokens, and the image head, of ``model`` in place; the decoder does not run.

    An image token is trained to match the embeddings of what it depicts: class and colour of its object, and which part of it
    (row and column). The head is trained to predict the token from those embeddings, added up with random weights and noise as a
    decoder's last state might hold them. Prompts then only have to teach which words to look up, and for which place.
    ``report`` gets, every 50 steps, the head's cross-entropy (nats) as "token", the others as in ``align_vision``.
    """
    directions = _directions(model, tokenizer)
    every = itertools.product(CLASSES, COLORS, SIZES)
    scenes = [Scene((SceneObject(name, color, cell=0, size=size),)) for name, color, size in every]
    pictures = pixels([render(scene) for scene in scenes])
    tokens = torch.cat([encode_image_tokens(model.model.vqmodel, part) for part in pictures.split(64)])
    shown = _shown(scenes, round(tokens.shape[1] ** 0.5), _place_in_object).flatten(0, 1)
    tokens = tokens.flatten()
    patches = [(shown[:, 0] >= 0).nonzero().flatten(), (shown[:, 0] < 0).nonzero().flatten()]  # of objects, blank
    sizes = [alignment.batch_size, max(1, alignment.batch_size // 8)]
    draw = torch.Generator().manual_seed(alignment.seed)

    def losses() -> dict[str, Tensor]:
        chosen = torch.cat([of[torch.randint(len(of), (size,), generator=draw)] for of, size in zip(patches, sizes, strict=True)])
        mine, token = shown[chosen], tokens[chosen]
        drawn = mine[:, 0] >= 0
        state = torch.randn(len(mine), model.config.text_config.hidden_size, generator=draw)
        state = F.normalize(state, dim=-1)  # the whole state where the patch is blank, else noise
        for place, words in enumerate(directions.values()):
            weight = (0.5 + torch.rand(len(mine), 1, generator=draw)) * drawn.unsqueeze(-1)
            state = state + weight * words[mine[:, place].clamp_min(0)]
        state = F.normalize(state, dim=-1) * state.shape[-1] ** 0.5  # as the decoder's last norm leaves it
        features = model.prepare_embeddings_for_image_generation(token[drawn].unsqueeze(0))[0]
        found = F.cross_entropy(model.model.generation_head(state), token)
        return {"token": found, **_pointing(features, mine[drawn], directions, alignment.temperature)}

    inner = model.model
    _fit([inner.generation_embeddings, inner.generation_aligner, inner.generation_head], alignment, losses, report)


def _fit(parts: list[nn.Module], alignment: Alignment, losses: Callable[[], dict[str, Tensor]], report: LossCallback) -> None:
    """Minimise the sum of what ``losses`` returns over the weights of ``parts``."""
    weights = [weight for part in parts for weight in part.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=alignment.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(alignment.steps):
        for group in optimizer.param_groups:
            group["lr"] = alignment.learning_rate * min(1.0, (step + 1) / 50) * (1 - 0.95 * step / alignment.steps)
        terms = losses()
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step % 50 == 0 or step == alignment.steps - 1:
            report(step, {kind: loss.item() for kind, loss in terms.items()})


def _directions(model: UniJanusForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> dict[str, Tensor]:
    """Unit word embeddings of each kind in ``WORDS``."""
    directions = F.normalize(model.get_input_embeddings().weight.detach(), dim=-1)
    return {kind: directions[torch.tensor(tokenizer.convert_tokens_to_ids(list(names)))] for kind, names in WORDS.items()}


def _pointing(features: Tensor, shown: Tensor, directions: dict[str, Tensor], temperature: float) -> dict[str, Tensor]:
    """Cross-entropy of finding each kind's word, (N,) numbers in ``shown`` (N, kinds), by cosine with ``features`` (N, H)."""
    pointing = F.normalize(features, dim=-1) / temperature
    return {kind: F.cross_entropy(pointing @ words.T, shown[:, place]) for place, (kind, words) in enumerate(directions.items())}


def _shown(scenes: Sequence[Scene], side: int, place: Callable[[int, int, int], tuple[int, int]]) -> Tensor:
    """(scenes, side * side, 4) numbers of class, colour, row and column of each patch (raster order); -1: blank."""
    rows = []
    for scene in scenes:
        by_cell = {obj.cell: (CLASSES.index(obj.name), COLORS.index(obj.color)) for obj in scene.objects}
        row = []
        for y in range(side):
            for x in range(side):
                obj = by_cell.get(2 * (y * 2 // side) + x * 2 // side)
                row.append((*obj, *place(y, x, side)) if obj else (-1,) * 4)
        rows.append(row)
    return torch.tensor(rows)


def _place_on_board(y: int, x: int, side: int) -> tuple[int, int]:
    return y * 2 // side, x * 2 // side


def _place_in_object(y: int, x: int, side: int) -> tuple[int, int]:
    return y * 4 // side % 2, x * 4 // side % 2
