"""The batched generator of answers: each joins and leaves the batch on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache

from unidecouple.batch import Task
from unidecouple.data.sequences import SequenceBuilder, pixels
from unidecouple.generate.batch_slots import BatchSlots
from unidecouple.generate.fixed import FixedDecoder
from unidecouple.generate.generator import generate_all
from unidecouple.generate.jobs import AnswerJob
from unidecouple.generate.one_task import one_task
from unidecouple.generate.padding import left_pad, positions
from unidecouple.generate.replay import GraphedStep, Recorder, fill
from unidecouple.generate.sampler import Form, Sampler, uniforms
from unidecouple.generate.stopping import before_stop, has_stop
from unidecouple.models.base import UnifiedModel


@dataclass
class AnswerProgress:
    """An answer that is being generated.

    Attributes:
        job: what was asked for.
        row: its row of the batch.
        tokens: so far, without the EOS.
        stopped: whether the EOS or a stop string came; an answer that is done without one was cut off.
    """

    job: AnswerJob
    row: int
    tokens: list[int] = field(default_factory=list)
    stopped: bool = False


class AnswerGenerator:
    """A ``Generator`` of answers; ``add`` and ``step`` in any order.

    Args:
        model: any model with our decoder; what serves understanding is taken from it (``one_task``).
        builder: its sequence builder.
        max_batch_size: answers at a time.
        max_length: most tokens of one conversation, images and the answer among them.
        recorder: of steps, which are then padded to a few sizes; None launches every operator anew.

    Attributes:
        answers: that are being generated, in the order of their rows.
    """

    def __init__(
        self,
        model: UnifiedModel,
        builder: SequenceBuilder,
        max_batch_size: int = 16,
        max_length: int = 1024,
        recorder: Recorder | None = None,
    ) -> None:
        self.model, self.builder, self._recorder = one_task(model, Task.MMU), builder, recorder
        self.max_batch_size, self.max_length, device = max_batch_size, max_length, self.model.device
        fixed, vocabulary = FixedDecoder(self.model.decoder, Task.MMU), self.model.config.text_config.vocab_size
        self._rows = BatchSlots(fixed, max_batch_size, max_length, self._embed, self.model.lm_head, vocabulary, recorder)
        self._eos: int = builder.tokenizer.eos_token_id
        self._input_ids = torch.zeros(max_batch_size, dtype=torch.long, device=device)
        self._uniform = torch.zeros(max_batch_size, self._rows.max_length, device=device)
        self._next = torch.zeros(max_batch_size, 1, dtype=torch.long, device=device)
        self._sampler = Sampler([], device, max_batch_size)
        self._chosen = GraphedStep(self._choose, recorder)
        self.answers: list[AnswerProgress] = []

    @property
    def free_slots(self) -> int:
        """See ``Generator``."""
        return self.max_batch_size - len(self.answers)

    def renew(self) -> AnswerGenerator:
        """See ``Generator``."""
        return AnswerGenerator(self.model, self.builder, self.max_batch_size, self.max_length, self._recorder)

    @torch.no_grad()
    def add(self, jobs: Sequence[AnswerJob]) -> list[AnswerProgress]:
        """Read the conversations of ``jobs`` in one forward pass; the next ``step`` generates their first tokens.

        Raises:
            ValueError: there is no room, one is too long, or its images do not fit its placeholders.
        """
        self._check(jobs)
        ids, mask = left_pad([job.prompt_ids for job in jobs], self.builder.tokenizer.pad_token_id, self.model.device)
        pictures = [picture for job in jobs for picture in job.pictures]
        cache = DynamicCache(config=self.model.config.text_config)
        read = self.model(
            input_ids=ids,
            pixel_values=pixels(pictures).to(self.model.device, self.model.dtype) if pictures else None,
            attention_mask=mask,
            position_ids=positions(mask),
            cache=cache,
            logits_to_keep=1,
            task_ids=torch.full((1, 1), int(Task.MMU), device=ids.device),
        )
        rows = self._rows.admit(cache, mask, read.logits[:, -1])
        new = [AnswerProgress(job, row) for job, row in zip(jobs, rows, strict=True)]
        for answer in new:
            uniform = uniforms(answer.job.seed, answer.job.max_new_tokens)
            self._uniform[answer.row, : len(uniform)] = uniform.to(self._uniform.device)
        self.answers += new
        self._gather()
        return new

    @torch.no_grad()
    def step(self) -> list[AnswerProgress]:
        """Generate one token of every answer. Returns those that are done, by the EOS, a stop string or their length.

        The tokens of all answers are read on the host once per step, to find which ones go on.
        """
        if not self.answers:
            return []
        count = len(self.answers)
        self._chosen(self._chosen.padded(count, self.max_batch_size), self._sampler.form)
        self._next[:count] += 1
        for answer, chosen in zip(self.answers, self._input_ids[:count].tolist(), strict=True):
            answer.stopped = chosen == self._eos
            if not answer.stopped:
                answer.tokens.append(chosen)
                answer.stopped = bool(answer.job.stop) and has_stop(self.text(answer), answer.job.stop)
        done = [a for a in self.answers if a.stopped or len(a.tokens) == a.job.max_new_tokens]
        if done:
            self._take_out(done)
        if self.answers:
            self._rows.step()
        return done

    def text(self, answer: AnswerProgress) -> str:
        """The text of ``answer`` so far, with the stop string that ended it."""
        return self.builder.tokenizer.decode(answer.tokens, skip_special_tokens=True)

    @torch.no_grad()
    def remove(self, answer: AnswerProgress) -> None:
        """Stop generating ``answer``; the others are not affected.

        Raises:
            ValueError: it is not being generated.
        """
        if all(answer is not other for other in self.answers):
            raise ValueError("the answer is not being generated: it is done, or was removed")
        self._take_out([answer])

    def _take_out(self, answers: Sequence[AnswerProgress]) -> None:
        moved = self._rows.leave({answer.row for answer in answers})
        for old, new in moved.items():
            self._input_ids[new], self._uniform[new] = self._input_ids[old], self._uniform[old]
        self.answers = [other for other in self.answers if all(other is not answer for answer in answers)]
        for answer in self.answers:
            answer.row = moved.get(answer.row, answer.row)
        self.answers.sort(key=lambda answer: answer.row)
        self._gather()

    def _choose(self, rows: int, form: Form) -> None:
        """Choose the next token of the first ``rows`` rows."""
        uniform = self._uniform[:rows].gather(1, self._next[:rows]).squeeze(1)
        self._input_ids[:rows] = self._sampler(self._rows.logits[:rows], uniform, form)

    def _embed(self, rows: int) -> Tensor:
        """Return the embeddings (rows, H) of the last tokens of the first ``rows`` rows."""
        embedded: Tensor = self.model.get_input_embeddings()(self._input_ids[:rows])
        return embedded

    def _gather(self) -> None:
        """Write each row's place and sampling settings to tensors; needed only when an answer comes or goes."""
        fill(self._next, [len(answer.tokens) for answer in self.answers])
        self._sampler.set([answer.job.sampling for answer in self.answers])

    def _check(self, jobs: Sequence[AnswerJob]) -> None:
        if len(jobs) > self.free_slots:
            raise ValueError(f"{len(jobs)} answers do not fit, there is room for {self.free_slots}: wait, or raise max_batch_size")
        self._rows.check([len(job.prompt_ids) + job.max_new_tokens for job in jobs])
        tokens = self.builder.seen_tokens
        for job in jobs:
            places = job.prompt_ids.count(self.model.config.image_token_id)
            if places != tokens * len(job.pictures):
                raise ValueError(
                    f"{places} image placeholders for {len(job.pictures)} images of {tokens} tokens: every image needs its "
                    "run of placeholders"
                )


def generate_answers(generator: AnswerGenerator, jobs: Sequence[AnswerJob]) -> list[str]:
    """Return the answers' texts, before their stop strings."""
    texts = [""] * len(jobs)
    for number, answer in generate_all(generator, jobs):
        texts[number] = before_stop(generator.text(answer), answer.job.stop)
    return texts
