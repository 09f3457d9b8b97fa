"""What the counted benchmarks share: a tiny Janus with images of 576 tokens, and a seeded mixture of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unidecouple.batch import Task
from unidecouple.data.sequences import QAPair, Sample, SequenceBuilder
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.processing import UniJanusProcessor
from unidecouple.models.tiny import TinySize, tiny_config, tiny_model, tiny_processor
from unidecouple.world.dataset import vocabulary

SIZE = TinySize(
    hidden_size=32,
    num_hidden_layers=2,
    intermediate_size=64,
    vision_hidden_size=32,
    vision_layers=1,
    image_size=384,
    codes=64,
    vq_latent_channels=32,
    vq_channel_multiplier=(1, 1, 1, 1, 1),
)
"""Janus-Pro's images, 384 pixels and 576 tokens each; all else as small as can be."""

MIXTURE = (5, 1, 4)
"""Understanding : texts : generation, as Janus-Pro's last stage mixes them (arXiv 2501.17811, section 2.2)."""


def processor_of(size: TinySize) -> UniJanusProcessor:
    """The processor of a tiny model of ``size``."""
    return tiny_processor(vocabulary(), size)


def model_of(processor: UniJanusProcessor, size: TinySize, **text: Any) -> UniJanusForConditionalGeneration:
    """A tiny model with random weights; ``text`` overrides fields of its decoder's configuration."""
    return tiny_model(tiny_config(processor.tokenizer, size, **text), seed=0).eval()


def samples(
    builder: SequenceBuilder, size: TinySize, counts: Sequence[int], seed: int, words: tuple[int, int] = (16, 400)
) -> list[Sample]:
    """Samples in a random order, their texts of random length.

    Args:
        builder: of the model's processor.
        size: of the model.
        counts: how many images to be understood, texts, images to be drawn.
        seed: of all.
        words: of a text, from the first to below the second; of a prompt, an eighth of that.
    """
    rng = np.random.default_rng(seed)
    known = [word for word in vocabulary() if word.isalpha()]

    def text(share: int = 1) -> str:
        return " ".join(rng.choice(known, max(1, int(rng.integers(*words)) // share)))

    made: list[Sample] = []
    for kind in rng.permutation(np.repeat(range(3), counts)):
        if kind == 0:
            picture = rng.integers(0, 256, (size.image_size, size.image_size, 3), dtype=np.uint8)
            made.append(builder.understanding(picture, [QAPair("text", text(2), text(2))]))
        elif kind == 1:
            made.append(builder.conversation([("user", [text(2)]), ("assistant", [text(2)])], Task.MMU))
        else:
            made.append(builder.generation(text(8), rng.integers(0, size.codes, size.num_image_tokens).tolist()))
    return made
