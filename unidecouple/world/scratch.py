"""Make a base: a tiny model with random weights, its image tokenizer and vision tower trained on synthetic images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from unidecouple import bounds
from unidecouple.convert.load import load
from unidecouple.data.sequences import pixels
from unidecouple.files import append_jsonl, atomic_directory, write_json_atomic
from unidecouple.generate.image import decode_images
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.tiny import TinySize, tiny_config, tiny_model, tiny_processor
from unidecouple.models.vq import encode_image_tokens
from unidecouple.ownership import check_directory
from unidecouple.source import PrintLine
from unidecouple.train.export import source_of_copy, write_copy
from unidecouple.world.alignment import Alignment, LossCallback, align_generation, align_vision
from unidecouple.world.dataset import tokenizer_pictures, vocabulary
from unidecouple.world.geneval import judge_bounds
from unidecouple.world.judge import TemplateJudge
from unidecouple.world.prompts import held_out
from unidecouple.world.tokenizer import TokenizerTraining, fit_tokenizer

GENERATION = Alignment(steps=5000, batch_size=256, learning_rate=2e-3)
"""How the generation side of the shipped bases is aligned."""


@dataclass(frozen=True)
class Scratch:
    """Settings of a tiny model trained from scratch.

    Attributes:
        size: its shape.
        tokenizer: training of its image tokenizer.
        alignment: training of its vision tower on word embeddings.
        pictures, picture_seed: number and seed of the training images.
        seed: of the random weights.
        threads: of torch.
    """

    size: TinySize = field(default_factory=TinySize)
    tokenizer: TokenizerTraining = field(default_factory=TokenizerTraining)
    alignment: Alignment = field(default_factory=Alignment)
    pictures: int = 12000
    picture_seed: int = 1
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        bounds.at_least(1, self, "pictures", "threads")
        bounds.at_least(0, self, "picture_seed", "seed")


def make_scratch(scratch: Scratch, folder: Path, say: PrintLine) -> None:
    """Write the checkpoint ``folder``, ``image_tokenizer.jsonl`` (losses) and ``image_tokenizer.json`` (the judge's bounds)."""
    check_directory(folder)
    torch.set_num_threads(scratch.threads)
    processor = tiny_processor(vocabulary(), scratch.size)
    model = tiny_model(tiny_config(processor.tokenizer, scratch.size), scratch.seed)
    images = tokenizer_pictures(scratch.pictures, scratch.picture_seed, lambda what, done, of: say(f"{what}: {done} of {of}"))
    log: list[dict[str, float]] = []

    def keep(step: int, values: dict[str, float]) -> None:
        log.append({"step": step, **values})
        follow("tokenizer", scratch.tokenizer.steps, say)(step, values)

    fit_tokenizer(model.model.vqmodel, torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), scratch.tokenizer, keep)
    align_vision(model, processor.tokenizer, scratch.alignment, follow("alignment", scratch.alignment.steps, say))
    model.eval()
    with atomic_directory(folder) as staging:
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        for record in log:
            append_jsonl(staging / "image_tokenizer.jsonl", record)
        judged = tokenizer_bounds(model)
        write_json_atomic(staging / "image_tokenizer.json", judged)
    say(f"the judge's ceiling is {judged['ceiling']:.3f}, through the tokenizer {judged['through_tokenizer']:.3f}")


@torch.no_grad()
def tokenizer_bounds(model: UniJanusForConditionalGeneration, split: str = "val") -> dict[str, float]:
    """GenEval ``overall`` of ground-truth renders by the template judge, directly and through the model's tokenizer."""

    def round_trip(batch: np.ndarray) -> np.ndarray:
        chunks = [batch[start : start + 64] for start in range(0, len(batch), 64)]
        tokens = torch.cat([encode_image_tokens(model.model.vqmodel, pixels(chunk)) for chunk in chunks])
        return decode_images(model, tokens)

    judge, prompts = TemplateJudge(), held_out(split)[0]
    direct, through = judge_bounds(judge, prompts, num_images=2), judge_bounds(judge, prompts, num_images=2, transform=round_trip)
    return {"ceiling": direct.ceiling["overall"], "through_tokenizer": through.ceiling["overall"], "floor": direct.floor["overall"]}


def align(checkpoint: Path, folder: Path, say: PrintLine, alignment: Alignment = GENERATION) -> Path:
    """Write ``checkpoint`` with its generation side aligned with its words to ``folder``.

    Do this after the words are learned. Training turns the embeddings of a model from scratch by 30 degrees; aligned with those,
    UniDecouple learns to follow prompts half as fast (docs/experiments/word-alignment.md).
    """
    source = source_of_copy(checkpoint, folder)
    torch.set_num_threads(1)  # sums in another order would give other weights
    model, processor = load(str(checkpoint))
    align_generation(model, processor.tokenizer, alignment, follow("alignment", alignment.steps, say))
    return write_copy(model, processor, folder, source)


def follow(what: str, steps: int, say: PrintLine) -> LossCallback:
    """Return a callback that prints each step of ``what`` with its values."""
    return lambda step, values: say(f"{what} step {step}/{steps}  " + "  ".join(f"{k} {v:.3f}" for k, v in values.items()))
