"""Answers to many questions at a time, each joining and leaving on its own."""

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
from unidecouple.generate.in_turn import in_turn
from unidecouple.generate.jobs import AnswerJob
from unidecouple.generate.one_task import one_task
from unidecouple.generate.padding import left_pad, positions
from unidecouple.generate.replay import GraphedStep, Recorder, fill
from unidecouple.generate.sampler import Form, Sampler, uniforms
from unidecouple.generate.stopping import before_stop, has_stop
from unidecouple.models.base import UnifiedModel


@dataclass
class Answer:
    """An answer in the making.

    Attributes:
        job: what was asked for.
        row: where it stands.
        tokens: so far, without the EOS.
        ended: whether the EOS or a stop string came; else, once it is done, it was cut off.
    """

    job: AnswerJob
    row: int
    tokens: list[int] = field(default_factory=list)
    ended: bool = False


class Answering:
    """Gives up to ``most`` answers at a time; ``add`` and ``step`` in any order.

    Args:
        model: any model with our decoder; what serves understanding is taken from it (``one_task``).
        builder: its sequence builder.
        most: answers at a time.
        length: most tokens of one conversation, pictures and the answer among them.
        recorder: of steps, which are then padded to a few sizes; None computes every one anew.
    """

    def __init__(
        self,
        model: UnifiedModel,
        builder: SequenceBuilder,
        most: int = 16,
        length: int = 1024,
        recorder: Recorder | None = None,
    ) -> None:
        self.model, self.builder, self.most = one_task(model, Task.MMU), builder, most
        fixed, vocabulary = FixedDecoder(self.model.decoder, Task.MMU), self.model.config.text_config.vocab_size
        device = self.model.device
        self._rows = BatchSlots(fixed, most, length, self._embed, self.model.lm_head, vocabulary, recorder)
        self._eos: int = builder.tokenizer.eos_token_id
        self._fed = torch.zeros(most, dtype=torch.long, device=device)
        self._uniform = torch.zeros(most, self._rows.length, device=device)
        self._next = torch.zeros(most, 1, dtype=torch.long, device=device)
        self._sampler = Sampler([], device, most)
        self._chosen = GraphedStep(self._choose, recorder)
        self.answers: list[Answer] = []
        """In the order of their rows."""

    @property
    def room(self) -> int:
        """Answers that can be added now."""
        return self.most - len(self.answers)

    @torch.no_grad()
    def add(self, requests: Sequence[AnswerJob]) -> list[Answer]:
        """Read the conversations of ``requests``, in one pass; they are answered from the next ``step`` on.

        Raises:
            ValueError: there is no room, one is too long, or its pictures do not fit its placeholders.
        """
        self._check(requests)
        ids, mask = left_pad([request.prompt_ids for request in requests], self.builder.tokenizer.pad_token_id, self.model.device)
        pictures = [picture for request in requests for picture in request.pictures]
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
        new = [Answer(request, row) for request, row in zip(requests, rows, strict=True)]
        for answer in new:
            drawn = uniforms(answer.job.seed, answer.job.max_new_tokens)
            self._uniform[answer.row, : len(drawn)] = drawn.to(self._uniform.device)
        self.answers += new
        self._gather()
        return new

    @torch.no_grad()
    def step(self) -> list[Answer]:
        """Give every answer one more token. Returns those that are done, by the EOS, a stop string or their length.

        The tokens of all answers come to the host once a step: only there is it known which go on.
        """
        if not self.answers:
            return []
        count = len(self.answers)
        self._chosen(self._chosen.padded(count, self.most), self._sampler.form)
        self._next[:count] += 1
        for answer, chosen in zip(self.answers, self._fed[:count].tolist(), strict=True):
            answer.ended = chosen == self._eos
            if not answer.ended:
                answer.tokens.append(chosen)
                answer.ended = bool(answer.job.stop) and has_stop(self.text(answer), answer.job.stop)
        done = [a for a in self.answers if a.ended or len(a.tokens) == a.job.max_new_tokens]
        for answer in done:
            self._leave(answer)
        if done:
            self._gather()
        if self.answers:
            self._rows.step()
        return done

    def text(self, answer: Answer) -> str:
        """``answer`` so far, in plain words, with a stop string that it came to."""
        return self.builder.tokenizer.decode(answer.tokens, skip_special_tokens=True)

    @torch.no_grad()
    def remove(self, answer: Answer) -> None:
        """Stop giving ``answer``; the others do not notice.

        Raises:
            ValueError: it is not being given.
        """
        if all(answer is not other for other in self.answers):
            raise ValueError("the answer is not being given: it is done, or was removed")
        self._leave(answer)
        self._gather()

    def _leave(self, answer: Answer) -> None:
        last = self.answers.pop()
        if last is not answer:
            self.answers[answer.row], last.row = last, answer.row
        moved = self._rows.leave(answer.row)
        if moved is not None:
            self._fed[answer.row], self._uniform[answer.row] = self._fed[moved], self._uniform[moved]

    def _choose(self, rows: int, form: Form) -> None:
        """Choose the next token of the first ``rows`` rows."""
        uniform = self._uniform[:rows].gather(1, self._next[:rows]).squeeze(1)
        self._fed[:rows] = self._sampler(self._rows.logits[:rows], uniform, form)

    def _embed(self, rows: int) -> Tensor:
        """(rows, H): what the first ``rows`` rows are fed."""
        embedded: Tensor = self.model.get_input_embeddings()(self._fed[:rows])
        return embedded

    def _gather(self) -> None:
        """Where each row stands and how it chooses, as tensors; filled anew only when an answer comes or goes."""
        fill(self._next, [len(answer.tokens) for answer in self.answers])
        self._sampler.set([answer.job.sampling for answer in self.answers])

    def _check(self, requests: Sequence[AnswerJob]) -> None:
        if len(requests) > self.room:
            raise ValueError(f"{len(requests)} answers are more than the {self.room} that there is room for: wait, or raise `most`")
        self._rows.check([len(request.prompt_ids) + request.max_new_tokens for request in requests])
        tokens = self.builder.seen_tokens
        for request in requests:
            places = request.prompt_ids.count(self.model.config.image_token_id)
            if places != tokens * len(request.pictures):
                raise ValueError(
                    f"{places} image placeholders for {len(request.pictures)} pictures of {tokens} tokens: every picture needs its "
                    "run of placeholders"
                )


def answer_requests(answering: Answering, requests: Sequence[AnswerJob]) -> list[str]:
    """Answers in plain words, as many at a time as there is room for."""
    found = [""] * len(requests)
    for number, answer in in_turn(answering, requests):
        found[number] = before_stop(answering.text(answer), answer.job.stop)
    return found
