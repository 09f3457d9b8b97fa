"""Understanding and generation behind two plain calls: lists in, lists out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unidecouple.batch import Task
from unidecouple.convert.load import load
from unidecouple.data.formats.record import ImageFile
from unidecouple.data.pictures import decode, to_rgb
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.generate.answer_generator import AnswerGenerator, generate_answers
from unidecouple.generate.image import decode_images
from unidecouple.generate.image_generator import ImageGenerator, generate_image_tokens
from unidecouple.generate.jobs import AnswerJob, ImageJob, copies
from unidecouple.generate.layout import join_shared
from unidecouple.generate.one_task import load_one_task
from unidecouple.generate.replay import recorder_of
from unidecouple.generate.sampling import GREEDY, SamplingParams, image_sampling
from unidecouple.models.base import UnifiedModel
from unidecouple.models.processing import UnifiedProcessor

ImageLike = Image.Image | str | os.PathLike[str]
"""An image or its file."""

MISSING_GREY = 127
"""Pixels of a partial image whose tokens do not exist yet."""


class Engine:
    """A model that answers and generates images. Each task's generator is built when it is first used; both share common weights.

    The model's parameters become views of the generators' weights: it can still be called, but is not to be trained.

    Args:
        model: with our decoder; from ``load_one_task``, it serves one task only.
        processor: its processor.
        max_batch_size: images at a time, and answers at a time.
        max_prompt_length: most tokens of a prompt for an image, without its source images.
        max_length: most tokens of a conversation, images and the answer among them.
        task: the only one that ``model`` serves; None is both.
        eager: launch every operator of a decoding step from Python on a CUDA device, too; by default a step is recorded there once
            for each size and replayed.

    Attributes:
        image_sampling: the checkpoint's own settings for images.
    """

    def __init__(
        self,
        model: UnifiedModel,
        processor: UnifiedProcessor,
        max_batch_size: int = 16,
        max_prompt_length: int = 256,
        max_length: int = 1024,
        task: Task | None = None,
        eager: bool = False,
    ) -> None:
        self.processor, self.builder, self.task = processor, SequenceBuilder(processor), task
        self.max_batch_size, self.max_prompt_length, self.max_length = max_batch_size, max_prompt_length, max_length
        self.image_sampling = image_sampling(model.generation_config)
        self.recorder = None if eager else recorder_of(model.device)
        self._model: UnifiedModel | None = model.eval()
        join_shared(model.decoder)

    @classmethod
    def load(
        cls,
        name_or_path: str,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        task: str | None = None,
        max_batch_size: int = 16,
        eager: bool = False,
    ) -> Engine:
        """Load the engine of a checkpoint: a shipped base's name, a folder, or a run's folder.

        Args:
            name_or_path: see ``convert.load.checkpoint_folder``.
            device: where to compute.
            dtype: of the weights; float32 generates the plain loop's tokens.
            task: "mmu" or "t2i" loads only what serves that task, one layer at a time; None is both.
            max_batch_size: images, and answers, at a time.
            eager: record no steps.

        Raises:
            ValueError: there is no such checkpoint, or no such task.
        """
        known = {one.key: one for one in Task}
        if task is not None and task not in known:
            raise ValueError(f"task={task!r} is not one of {', '.join(known)}; leave it out for both")
        one = None if task is None else known[task]
        model, processor = load(name_or_path, dtype) if one is None else load_one_task(name_or_path, one, dtype)
        return cls(model.to(device), processor, max_batch_size, task=one, eager=eager)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that it serves."""
        return tuple(Task) if self.task is None else (self.task,)

    @property
    def model(self) -> UnifiedModel:
        """The whole model, routers included, as long as a generator is still to be built from it.

        Raises:
            ValueError: both are built, and the model was let go to free its memory; whoever needs it takes it before.
        """
        if self._model is None:
            raise ValueError("both generators are built, and the whole model is gone: take it before")
        return self._model

    @cached_property
    def answers(self) -> AnswerGenerator:
        """The generator of answers, for callers who step themselves."""
        return AnswerGenerator(self._for(Task.MMU), self.builder, self.max_batch_size, self.max_length, self.recorder)

    @cached_property
    def images(self) -> ImageGenerator:
        """The generator of images, for callers who step themselves."""
        return ImageGenerator(self._for(Task.T2I), self.builder, self.max_batch_size, self.max_prompt_length, self.recorder)

    def understand(
        self,
        images: Sequence[ImageLike],
        questions: Sequence[str],
        max_new_tokens: int = 64,
        sampling: SamplingParams = GREEDY,
        seed: int = 0,
    ) -> list[str]:
        """Answer ``questions[i]`` about ``images[i]``, an image or its file. A sampled answer i depends on (seed, i) only.

        Raises:
            ValueError: there are not as many questions as images, or one does not fit.
        """
        if len(images) != len(questions):
            raise ValueError(f"{len(images)} images for {len(questions)} questions: give one image per question")
        jobs = [
            AnswerJob(
                self.builder.understanding_prompt(question),
                (self.processor.understood(_opened(image)),),
                max_new_tokens,
                sampling,
                (seed, number),
            )
            for number, (image, question) in enumerate(zip(images, questions, strict=True))
        ]
        return generate_answers(self.answers, jobs)

    @overload
    def generate_images(
        self,
        prompts: str,
        num_images: int = ...,
        seed: int = ...,
        sampling: SamplingParams | None = ...,
        negative_prompt: str | None = ...,
        images: Sequence[ImageLike] | None = ...,
    ) -> list[Image.Image]: ...

    @overload
    def generate_images(
        self,
        prompts: list[str] | tuple[str, ...],
        num_images: int = ...,
        seed: int = ...,
        sampling: SamplingParams | None = ...,
        negative_prompt: str | None = ...,
        images: Sequence[Sequence[ImageLike]] | None = ...,
    ) -> list[list[Image.Image]]: ...

    def generate_images(
        self,
        prompts: str | list[str] | tuple[str, ...],
        num_images: int = 1,
        seed: int = 0,
        sampling: SamplingParams | None = None,
        negative_prompt: str | None = None,
        images: Sequence[Any] | None = None,
    ) -> list[Image.Image] | list[list[Image.Image]]:
        """Generate ``num_images`` images per prompt. Image j of prompt i depends on (seed, i, j), prompt and source images only.

        Args:
            prompts: a text or several.
            num_images: per prompt.
            seed: of the sampling.
            sampling: None takes the checkpoint's own settings (``image_sampling``).
            negative_prompt: what guidance leads away from; by default the empty prompt without source images.
            images: source images, or their files, which the prompt edits or combines: a list for one prompt, a list per prompt
                for several. The model must have been trained on edits.

        Returns:
            Of one prompt, a text: its images. Of several, in a list: a list of images per prompt, also if the list holds one.

        Raises:
            ValueError: ``images`` has not one list per prompt, or a text or an image cannot be used.
        """
        if isinstance(prompts, str):
            some = None if images is None else [images]
            return self.generate_images([prompts], num_images, seed, sampling, negative_prompt, some)[0]
        sources = [()] * len(prompts) if images is None else images
        if len(sources) != len(prompts) or any(isinstance(some, str | os.PathLike | Image.Image) for some in sources):
            raise ValueError(f"{len(sources)} source images or lists for {len(prompts)} prompts: give a list of images per prompt")
        shown = [tuple(self.processor.understood(_opened(image)) for image in some) for some in sources]
        chosen = sampling or self.image_sampling
        once = [
            ImageJob.of(self.builder, prompt, (), chosen, negative_prompt, some)
            for prompt, some in zip(prompts, shown, strict=True)
        ]
        jobs = copies(once, num_images, seed)
        pictures = self.render(generate_image_tokens(self.images, jobs)) if jobs else []
        return [pictures[i * num_images : (i + 1) * num_images] for i in range(len(prompts))]

    def render(self, tokens: Tensor) -> list[Image.Image]:
        """Decode image tokens (N, tokens per image)."""
        model = self.images.model
        return [Image.fromarray(picture) for picture in decode_images(model, tokens.to(model.device))]

    def preview(self, tokens: Tensor) -> Image.Image:
        """Decode an image whose first ``tokens`` (count,) exist, in rows from the top left; the rest is grey.

        A token's pixels also depend on its neighbours. Repeating the tokens that exist comes nearer to the finished image than
        filling the rest with one code.
        """
        length = self.images.length
        side = round(length**0.5)
        known = tokens if len(tokens) else tokens.new_zeros(1)
        filled = known[torch.arange(length, device=known.device) % len(known)]
        pixels = np.array(self.render(filled.unsqueeze(0))[0])
        patch = pixels.shape[0] // side
        there = np.arange(length).reshape(side, side) < len(tokens)
        pixels[~there.repeat(patch, 0).repeat(patch, 1)] = MISSING_GREY
        return Image.fromarray(pixels)

    def _for(self, task: Task) -> UnifiedModel:
        if self.task not in (None, task):
            raise ValueError(
                f"this engine was loaded for task={self.task.key!r} alone: load one with task={task.key!r}, or for both"
            )
        model = self._model
        assert model is not None
        other = "images" if task is Task.MMU else "answers"
        if self.task is not None or other in self.__dict__:
            self._model = None  # what neither generator needs of it is freed
        return model


def _opened(image: ImageLike) -> Image.Image:
    return to_rgb(image) if isinstance(image, Image.Image) else decode(ImageFile(Path(image)))
