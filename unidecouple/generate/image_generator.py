"""The batched generator of images: each joins and leaves the batch on its own, with guidance in one pass and no host waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from unidecouple.batch import Task
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.generate.batch_slots import BatchSlots
from unidecouple.generate.fixed import FixedDecoder, group_of
from unidecouple.generate.generator import generate_all
from unidecouple.generate.jobs import ImageJob
from unidecouple.generate.one_task import one_task
from unidecouple.generate.prompts import prompt_inputs
from unidecouple.generate.replay import GraphedStep, Recorder, fill
from unidecouple.generate.sampler import Form, Sampler, uniforms
from unidecouple.models.base import UnifiedModel


@dataclass
class ImageProgress:
    """An image that is being generated.

    Attributes:
        job: what was asked for.
        rows: of the batch: of its prompt and, with guidance, of the prompt that guidance leads away from.
        slot: where its tokens are kept.
        count: tokens so far.
        ending: whether the end of a row of tokens comes next, which the model does not choose (Emu3).
        tokens: all of them (N,), once it is done.
    """

    job: ImageJob
    rows: list[int]
    slot: int
    count: int = 0
    ending: bool = False
    tokens: Tensor | None = None


class ImageGenerator:
    """A ``Generator`` of images; ``add`` and ``step`` in any order.

    Args:
        model: any model with our decoder; what serves generation is taken from it (``one_task``).
        builder: its sequence builder.
        max_batch_size: images at a time; each takes two rows of keys and values, or one without guidance.
        max_prompt_length: most tokens of a prompt, without its source images; room for those is made when they come, and stays.
        recorder: of steps, which are then padded to a few sizes; None launches every operator anew.

    Attributes:
        length: tokens per image.
        images: that are being generated.
    """

    def __init__(
        self,
        model: UnifiedModel,
        builder: SequenceBuilder,
        max_batch_size: int = 16,
        max_prompt_length: int = 256,
        recorder: Recorder | None = None,
    ) -> None:
        self.model, self.builder, self._recorder = one_task(model, Task.T2I), builder, recorder
        self.max_batch_size, self.max_prompt_length = max_batch_size, max_prompt_length
        self.length: int = self.model.num_image_tokens
        self._columns = builder.picture.columns if builder.row_end else self.length
        self._check_row_ends()
        self._new = self.length + self.length // self._columns * len(builder.row_end)
        self._table = self._embeddings()
        fixed, codes, device = FixedDecoder(self.model.decoder, Task.T2I), self.model.num_codes, self.model.device
        room, slots = max_prompt_length + self._new, max_batch_size + 1  # the last slot is that of padding rows
        self._rows = BatchSlots(fixed, 2 * max_batch_size, room, self._embed, self.model.image_logits, codes, recorder)
        self._tokens = torch.zeros(slots, self.length, dtype=torch.long, device=device)
        self._input_ids = torch.zeros(slots, dtype=torch.long, device=device)
        self._uniform = torch.zeros(slots, self.length, device=device)
        self._row_slots = torch.zeros(2 * max_batch_size, dtype=torch.long, device=device)
        self._cond, self._uncond, self._slots, self._next = torch.zeros(4, max_batch_size, dtype=torch.long, device=device).unbind()
        self._sampler = Sampler([], device, max_batch_size)
        self._chosen = GraphedStep(self._choose, recorder)
        self._free = list(reversed(range(max_batch_size)))
        self.images: list[ImageProgress] = []

    @property
    def free_slots(self) -> int:
        """See ``Generator``."""
        return len(self._free)

    def renew(self) -> ImageGenerator:
        """See ``Generator``."""
        return ImageGenerator(self.model, self.builder, self.max_batch_size, self.max_prompt_length, self._recorder)

    @torch.no_grad()
    def add(self, jobs: Sequence[ImageJob]) -> list[ImageProgress]:
        """Read the prompts of ``jobs`` in one forward pass; the next ``step`` generates their first tokens.

        Raises:
            ValueError: there is no room, or a prompt is too long.
        """
        if len(jobs) > self.free_slots:
            raise ValueError(f"{len(jobs)} images do not fit, there is room for {self.free_slots}: wait, or raise max_batch_size")
        new = [ImageProgress(job, [], -1) for job in jobs]
        pairs = [(image, prompt) for image in new for prompt in image.job.prompts]
        lengths = [len(ids) + self._new for _, (ids, _) in pairs]
        images = max((len(job.pictures) for job in jobs), default=0)
        self._rows.grow(self.max_prompt_length + self._new + images * self.builder.source_length)
        self._rows.check(lengths)
        for (image, _), row in zip(pairs, self._read([prompt for _, prompt in pairs]), strict=True):
            image.rows.append(row)
        for image in new:
            image.slot = self._free.pop()
            self._uniform[image.slot] = uniforms(image.job.seed, self.length).to(self._uniform.device)
        self.images += new
        self._gather()
        return new

    @torch.no_grad()
    def step(self) -> list[ImageProgress]:
        """Generate one token of every image, or at the end of its row what ends it (Emu3). Returns those that are done."""
        choosing = [image for image in self.images if not image.ending]
        if choosing:
            self._chosen(self._chosen.padded(len(choosing), self.max_batch_size), self._sampler.form)
            self._next[: len(choosing)] += 1
        for image in choosing:
            image.count += 1
        done = [image for image in choosing if image.count == self.length]
        if done:
            for image in done:
                image.tokens = self.partial(image)
            self._take_out(done)
        if self.images:
            self._rows.step()
        turning = [image for image in self.images if image.ending or image.count % self._columns == 0]
        for image in turning:
            image.ending = not image.ending
        if turning:
            self._gather()
        return done

    def partial(self, image: ImageProgress) -> Tensor:
        """Return the tokens (count,) so far of an image that is being generated."""
        return self._tokens[image.slot, : image.count].clone()

    def remove(self, image: ImageProgress) -> None:
        """Stop generating ``image``; the others are not affected.

        Raises:
            ValueError: it is not being generated.
        """
        if all(image is not other for other in self.images):
            raise ValueError("the image is not being generated: it is done, or was removed")
        self._take_out([image])

    def _read(self, prompts: Sequence[tuple[list[int], Sequence[np.ndarray]]]) -> list[int]:
        """Pass ``prompts`` through the decoder, left-padded. Returns their rows of the batch."""
        read, cache = prompt_inputs(self.model, self.builder, prompts), DynamicCache(config=self.model.config.text_config)
        out = self.model.decoder(
            inputs_embeds=read.embeds,
            attention_mask=read.mask,
            position_ids=read.position_ids,
            cache=cache,
            task_ids=read.task_ids,
            modality_ids=read.modality_ids,
        )
        return self._rows.admit(cache, read.mask, self.model.image_logits(out.last_hidden_state[:, -1]))

    def _choose(self, images: int, form: Form) -> None:
        """Choose the next token of the first ``images`` that are not at the end of a row."""
        slots, place, logits = self._slots[:images], self._next[:images], self._rows.logits
        guided = self._sampler.guide(logits[self._cond[:images]], logits[self._uncond[:images]])
        token = self._sampler(guided, self._uniform[slots, place], form)
        self._tokens[slots, place] = token
        self._input_ids[slots] = token

    def _embed(self, rows: int) -> Tensor:
        """Return the embeddings (rows, H) of the last tokens of the first ``rows`` rows."""
        return self._table[self._input_ids[self._row_slots[:rows]]]

    def _take_out(self, images: Sequence[ImageProgress]) -> None:
        self.images = [other for other in self.images if all(other is not image for image in images)]
        self._free += [image.slot for image in images]
        moved = self._rows.leave({row for image in images for row in image.rows})
        for image in self.images:
            image.rows = [moved.get(row, row) for row in image.rows]
        self._gather()

    def _gather(self) -> None:
        """Write rows, slots and sampling settings to tensors; needed only when an image comes, goes or ends a row."""
        slots = {row: image.slot for image in self.images for row in image.rows}
        fill(self._row_slots, [slots[row] for row in range(self._rows.count)], rest=self.max_batch_size)
        choosing = [image for image in self.images if not image.ending]
        fill(self._cond, [image.rows[0] for image in choosing])
        fill(self._uncond, [image.rows[-1] for image in choosing])
        fill(self._slots, [image.slot for image in choosing], rest=self.max_batch_size)
        fill(self._next, [image.count for image in choosing])
        self._sampler.set([image.job.sampling for image in choosing])
        ending = [image.slot for image in self.images if image.ending]
        self._input_ids[ending] = self.model.num_codes  # the table's last row

    @torch.no_grad()
    def _embeddings(self) -> Tensor:
        """Return the embeddings (codes, H) of every image token; one more row has what ends a row of tokens, if anything does."""
        every = torch.arange(self.model.num_codes, device=self.model.device)
        parts = [self.model.embed_image_tokens(some.unsqueeze(0))[0] for some in every.split(4096)]
        ends = torch.tensor(self.builder.row_end, dtype=torch.long, device=self.model.device)
        return torch.cat([*parts, self.model.get_input_embeddings()(ends)])

    def _check_row_ends(self) -> None:
        text = self.model.config.text_config
        if len(self.builder.row_end) > 1:
            raise ValueError(f"rows of tokens that end in {len(self.builder.row_end)} tokens: no base family has more than one")
        if self.builder.row_end and text.group_by != "task" and group_of(text, Task.T2I) != group_of(text, Task.MMU):
            raise ValueError(
                f"group_by={text.group_by!r} with rows of tokens that end in text: use the plain loop for an image of two groups "
                "(unidecouple.generate.image.draw)"
            )


def generate_image_tokens(generator: ImageGenerator, jobs: Sequence[ImageJob]) -> Tensor:
    """Return the image tokens (jobs, tokens per image), on the CPU."""
    tokens = torch.zeros(len(jobs), generator.length, dtype=torch.long)
    for number, image in generate_all(generator, jobs):
        assert image.tokens is not None
        tokens[number] = image.tokens
    return tokens
