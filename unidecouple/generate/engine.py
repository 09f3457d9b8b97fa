"""Understanding and generation behind two plain calls: lists in, lists out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unidecouple.batch import Task
from unidecouple.convert.load import load
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.generate.answering import Answering, answer_requests
from unidecouple.generate.drawing import Drawing, draw_orders
from unidecouple.generate.image import decode_pictures
from unidecouple.generate.jobs import AnswerJob, image_jobs
from unidecouple.generate.layout import join_shared
from unidecouple.generate.one_task import load_one_task
from unidecouple.generate.replay import recorder_of
from unidecouple.generate.sampling import GREEDY, SamplingParams, image_sampling
from unidecouple.models.base import UnifiedModel
from unidecouple.models.processing import UnifiedProcessor

UNDRAWN = 127
"""Grey of what a growing picture does not show yet."""


class Engine:
    """A model that answers and draws. Each side is laid out when it is first used; both share what both tasks use.

    The model's parameters become views of what is laid out: it can still be called, but is not to be trained.

    Args:
        model: with our decoder; from ``load_one_task``, it has one side only.
        processor: its processor.
        most: pictures at a time, and answers at a time.
        prompt_length: most tokens of a prompt for a picture.
        length: most tokens of a conversation, pictures and the answer among them.
        task: the only one that ``model`` serves; None is both.
        eager: launch every operator of a decoding step from Python, on a CUDA device too, where else a step is recorded once for
            each size and replayed.
    """

    def __init__(
        self,
        model: UnifiedModel,
        processor: UnifiedProcessor,
        most: int = 16,
        prompt_length: int = 256,
        length: int = 1024,
        task: Task | None = None,
        eager: bool = False,
    ) -> None:
        self.processor, self.builder, self.task = processor, SequenceBuilder(processor), task
        self.most, self.prompt_length, self.length = most, prompt_length, length
        self.recorder = None if eager else recorder_of(model.device)
        self.image_sampling = image_sampling(model.generation_config)
        self._model: UnifiedModel | None = model.eval()
        join_shared(model.decoder)

    @classmethod
    def load(
        cls,
        name_or_path: str,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        task: str | None = None,
        most: int = 16,
        eager: bool = False,
    ) -> Engine:
        """The engine of a checkpoint: a shipped base's name, a folder, or a run's folder.

        Args:
            name_or_path: see ``convert.load.checkpoint_folder``.
            device: where to compute.
            dtype: of the weights; float32 draws the plain loop's tokens.
            task: "mmu" or "t2i" keeps only what serves that task, without ever holding the whole; None is both.
            most: pictures, and answers, at a time.
            eager: record no steps.

        Raises:
            ValueError: there is no such checkpoint, or no such task.
        """
        if task is None:
            model, processor = load(name_or_path, dtype)
            return cls(model.to(device), processor, most, eager=eager)
        known = {one.key: one for one in Task}
        if task not in known:
            raise ValueError(f"task={task!r} is not one of {', '.join(known)}; leave it out for both")
        model, processor = load_one_task(name_or_path, known[task], dtype)
        return cls(model.to(device), processor, most, task=known[task], eager=eager)

    @property
    def model(self) -> UnifiedModel:
        """The whole model, until both sides are laid out: who needs it afterwards, routers included, keeps it and its memory.

        Raises:
            ValueError: it is gone.
        """
        if self._model is None:
            raise ValueError("both sides are laid out, and the whole model is gone: take it before")
        return self._model

    @cached_property
    def answering(self) -> Answering:
        """The understanding side, for callers who step themselves."""
        return Answering(self._for(Task.MMU), self.builder, self.most, self.length, self.recorder)

    @cached_property
    def drawing(self) -> Drawing:
        """The generation side, for callers who step themselves."""
        return Drawing(self._for(Task.T2I), self.builder, self.most, self.prompt_length, self.recorder)

    def understand(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        max_new_tokens: int = 64,
        sampling: SamplingParams = GREEDY,
        seed: int = 0,
    ) -> list[str]:
        """Answer ``questions[i]`` about ``images[i]``, of any size. Answer i depends on (seed, i) only, if on chance at all.

        Raises:
            ValueError: there are not as many questions as images, or one does not fit.
        """
        if len(images) != len(questions):
            raise ValueError(f"{len(images)} images for {len(questions)} questions: give one image a question")
        requests = [
            AnswerJob(
                self.builder.understanding_prompt(question),
                (self.processor.understood(image.convert("RGB")),),
                max_new_tokens,
                sampling,
                (seed, number),
            )
            for number, (image, question) in enumerate(zip(images, questions, strict=True))
        ]
        return answer_requests(self.answering, requests)

    def generate_images(
        self,
        prompts: Sequence[str],
        num_images: int = 1,
        seed: int = 0,
        sampling: SamplingParams | None = None,
        negative_prompt: str | None = None,
    ) -> list[list[Image.Image]]:
        """Generate ``num_images`` images per prompt. Image j of prompt i depends on (seed, i, j) only.

        ``sampling`` None takes the checkpoint's own settings (``image_sampling``).
        """
        jobs = image_jobs(self.builder, prompts, num_images, seed, sampling or self.image_sampling, negative_prompt)
        if not jobs:
            return [[] for _ in prompts]
        pictures = self.render(draw_orders(self.drawing, jobs))
        return [pictures[i * num_images : (i + 1) * num_images] for i in range(len(prompts))]

    def render(self, tokens: Tensor) -> list[Image.Image]:
        """Pictures of image tokens (N, tokens of a picture)."""
        model = self.drawing.model
        return [Image.fromarray(picture) for picture in decode_pictures(model, tokens.to(model.device))]

    def preview(self, tokens: Tensor) -> Image.Image:
        """The picture whose first ``tokens`` (drawn,) are there, grey where it is not. They stand in rows from the top left.

        What is drawn also shows what surrounds it: a token's pixels depend on others. Repeating the tokens that there are comes
        nearer to the finished picture than filling the rest with one code.
        """
        drawing = self.drawing
        side = round(drawing.length**0.5)
        known = tokens if len(tokens) else tokens.new_zeros(1)
        whole = known[torch.arange(drawing.length, device=known.device) % len(known)]
        shown = np.array(self.render(whole.unsqueeze(0))[0])
        patch = shown.shape[0] // side
        drawn = np.arange(drawing.length).reshape(side, side) < len(tokens)
        shown[~drawn.repeat(patch, 0).repeat(patch, 1)] = UNDRAWN
        return Image.fromarray(shown)

    def _for(self, task: Task) -> UnifiedModel:
        if self.task not in (None, task):
            raise ValueError(
                f"this engine was loaded for task={self.task.key!r} alone: load one with task={task.key!r}, or for both"
            )
        model = self._model
        assert model is not None
        other = "drawing" if task is Task.MMU else "answering"
        if self.task is not None or other in self.__dict__:
            self._model = None  # what neither side needs of the whole model can go
        return model
