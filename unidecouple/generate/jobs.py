"""What the generators are asked for: answers and images, their prompts already tokenized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unidecouple.data.sequences import SequenceBuilder
from unidecouple.generate.sampling import GREEDY, IMAGE_SAMPLING, SamplingParams


@dataclass(frozen=True)
class AnswerJob:
    """One answer to generate.

    Attributes:
        prompt_ids: of the conversation, up to where the answer starts, with the placeholders of its images.
        pictures: uint8 (H, W, 3) of the model's size, in the order of their placeholders.
        max_new_tokens: longest answer, with the EOS.
        sampling: how each token is chosen.
        seed: of its sampling; its tokens depend on nothing else.
        stop: strings before the first of which the answer ends; its tokens go to the end of that string.

    Raises:
        ValueError: ``sampling`` has guidance, which answers have not.
    """

    prompt_ids: list[int]
    pictures: tuple[np.ndarray, ...] = ()
    max_new_tokens: int = 64
    sampling: SamplingParams = GREEDY
    seed: tuple[int, ...] = (0,)
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.sampling.guidance_scale != 1:
            raise ValueError(f"guidance_scale={self.sampling.guidance_scale:g}: answers have no guidance, leave it at 1")


@dataclass(frozen=True)
class ImageJob:
    """One image to generate; ``of`` makes it from text.

    Attributes:
        prompt_ids: up to where the image starts.
        negative_ids: of the prompt that guidance leads away from.
        seed: of its sampling; its tokens depend on nothing else.
        sampling: how each token is chosen; with a guidance scale of 1 there is no second row for ``negative_ids``.
        pictures, negative_pictures: source images, uint8 (H, W, 3) of the model's size, in the order of their placeholders in
            ``prompt_ids`` and ``negative_ids``.
    """

    prompt_ids: list[int]
    negative_ids: list[int]
    seed: tuple[int, ...]
    sampling: SamplingParams = IMAGE_SAMPLING
    pictures: tuple[np.ndarray, ...] = ()
    negative_pictures: tuple[np.ndarray, ...] = ()

    @classmethod
    def of(
        cls,
        builder: SequenceBuilder,
        prompt: str,
        seed: tuple[int, ...] = (0,),
        sampling: SamplingParams = IMAGE_SAMPLING,
        negative_prompt: str | None = None,
        pictures: Sequence[np.ndarray] = (),
    ) -> ImageJob:
        """Tokenize ``prompt`` once; without a ``negative_prompt``, guidance leads away from the hidden prompt.

        The hidden prompt has no source images, as in Janus-4o. A ``negative_prompt`` has those of ``prompt`` (ours). Janus-4o's
        script adds a third row, without the image tokens of the source images; this is its formula with that row's weight 0.

        Raises:
            ValueError: a text spells out a special token.
        """
        shown = tuple(pictures)
        ids = builder.generation_prompt(prompt, images=len(shown))
        if negative_prompt is None:
            return cls(ids, builder.hidden_prompt(ids), seed, sampling, shown)
        negative = builder.generation_prompt(negative_prompt, images=len(shown))
        return cls(ids, negative, seed, sampling, shown, shown)

    @property
    def prompts(self) -> tuple[tuple[list[int], tuple[np.ndarray, ...]], ...]:
        """The prompts that are read, each with its source images: ``prompt_ids`` and, with guidance, ``negative_ids``."""
        both = ((self.prompt_ids, self.pictures), (self.negative_ids, self.negative_pictures))
        return both[:1] if self.sampling.guidance_scale == 1 else both


def image_jobs(
    builder: SequenceBuilder,
    prompts: Sequence[str],
    num_images: int = 1,
    seed: int = 0,
    sampling: SamplingParams = IMAGE_SAMPLING,
    negative_prompt: str | None = None,
) -> list[ImageJob]:
    """Jobs of ``num_images`` images per prompt, prompt-major; image j of prompt i has the seed (seed, i, j)."""
    jobs = [ImageJob.of(builder, prompt, (), sampling, negative_prompt) for prompt in prompts]
    return copies(jobs, num_images, seed)


def copies(jobs: Sequence[ImageJob], num_images: int, seed: int) -> list[ImageJob]:
    """``num_images`` of each job, job-major; image j of job i has the seed (seed, i, j)."""
    return [replace(job, seed=(seed, number, copy)) for number, job in enumerate(jobs) for copy in range(num_images)]
