"""Answers to many questions at a time, each joining and leaving on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from unidecouple.batch import Task
from unidecouple.data.sequences import SequenceBuilder, pixels
from unidecouple.generate.fixed import FixedDecoder
from unidecouple.generate.in_turn import in_turn
from unidecouple.generate.one_task import one_task
from unidecouple.generate.padding import left_pad, positions
from unidecouple.generate.rows import Rows
from unidecouple.generate.sampler import Choice, Sampler, uniforms
from unidecouple.generate.stopping import before_stop, has_stop
from unidecouple.models.base import UnifiedModel

GREEDY = Choice(temperature=0.0)


@dataclass(frozen=True)
class Request:
    """One answer that is asked for.

    Attributes:
        ids: of the conversation, up to where the answer starts, with the placeholders of its pictures.
        pictures: uint8 (H, W, 3) of the model's size, in the order of their placeholders.
        max_new_tokens: longest answer, with the EOS.
        choice: how each token is chosen.
        seed: of its sampling; nothing else does its tokens depend on.
        stop: strings before the first of which the answer ends; its tokens go to the end of that string.
    """

    ids: list[int]
    pictures: tuple[np.ndarray, ...] = ()
    max_new_tokens: int = 64
    choice: Choice = GREEDY
    seed: tuple[int, ...] = (0,)
    stop: tuple[str, ...] = ()


@dataclass
class Answer:
    """An answer in the making.

    Attributes:
        request: what was asked for.
        row: where it stands.
        tokens: so far, without the EOS.
        ended: whether the EOS or a stop string came; else, once it is done, it was cut off.
    """

    request: Request
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
    """

    def __init__(self, model: UnifiedModel, builder: SequenceBuilder, most: int = 16, length: int = 1024) -> None:
        self.model, self.builder, self.most = one_task(model, Task.MMU), builder, most
        self._rows = Rows(FixedDecoder(self.model.decoder, Task.MMU), most, length)
        self._eos: int = builder.tokenizer.eos_token_id
        self._logits = torch.zeros(0, self.model.config.text_config.vocab_size, device=self.model.device)
        self._uniform = self._logits[:, :0]
        self.answers: list[Answer] = []
        """In the order of their rows."""

    @property
    def room(self) -> int:
        """Answers that can be added now."""
        return self.most - len(self.answers)

    @torch.no_grad()
    def add(self, requests: Sequence[Request]) -> list[Answer]:
        """Read the conversations of ``requests``, in one pass; they are answered from the next ``step`` on.

        Raises:
            ValueError: there is no room, one is too long, or its pictures do not fit its placeholders.
        """
        self._check(requests)
        ids, mask = left_pad([request.ids for request in requests], self.builder.tokenizer.pad_token_id, self.model.device)
        pictures = [picture for request in requests for picture in request.pictures]
        read = self.model(
            input_ids=ids,
            pixel_values=pixels(pictures).to(self.model.device, self.model.dtype) if pictures else None,
            attention_mask=mask,
            position_ids=positions(mask),
            use_cache=True,
            logits_to_keep=1,
            task_ids=torch.full((1, 1), int(Task.MMU), device=ids.device),
        )
        rows = self._rows.admit(read.past_key_values, mask)
        new = [Answer(request, row) for request, row in zip(requests, rows, strict=True)]
        self.answers += new
        self._logits = torch.cat([self._logits, read.logits[:, -1].float()])
        self._gather()
        return new

    @torch.no_grad()
    def step(self) -> list[Answer]:
        """Give every answer one more token. Returns those that are done, by the EOS, a stop string or their length.

        The tokens of all answers come to the host once a step: only there is it known which go on.
        """
        if not self.answers:
            return []
        token = self._sampler(self._logits, self._uniform.gather(1, self._next).squeeze(1))
        self._next += 1
        for answer, chosen in zip(self.answers, token.tolist(), strict=True):
            answer.ended = chosen == self._eos
            if not answer.ended:
                answer.tokens.append(chosen)
                answer.ended = bool(answer.request.stop) and has_stop(self.text(answer), answer.request.stop)
        done = [a for a in self.answers if a.ended or len(a.tokens) == a.request.max_new_tokens]
        for answer in done:
            row = answer.row
            self._leave(answer)
            token[row] = token[-1]
            token = token[:-1]
        if done:
            self._gather()
        if self.answers:
            hidden = self._rows.step(self.model.get_input_embeddings()(token))
            self._logits = self.model.lm_head(hidden).float()
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
        row = answer.row
        self._rows.leave(row)
        self._logits[row] = self._logits[-1]
        self._logits = self._logits[:-1]

    def _gather(self) -> None:
        """What belongs to which row, as tensors; made anew only when an answer comes or goes."""
        device, requests = self._logits.device, [answer.request for answer in self.answers]
        longest = max((request.max_new_tokens for request in requests), default=0)
        drawn = [uniforms(request.seed, longest) for request in requests]
        self._uniform = torch.stack(drawn).to(device) if drawn else self._logits[:, :0]
        self._next = torch.tensor([[len(answer.tokens)] for answer in self.answers], dtype=torch.long, device=device)
        self._sampler = Sampler([request.choice for request in requests], device)

    def _check(self, requests: Sequence[Request]) -> None:
        if len(requests) > self.room:
            raise ValueError(f"{len(requests)} answers are more than the {self.room} that there is room for: wait, or raise `most`")
        self._rows.check([len(request.ids) + request.max_new_tokens for request in requests])
        tokens = self.builder.seen_tokens
        for request in requests:
            places = request.ids.count(self.model.config.image_token_id)
            if places != tokens * len(request.pictures):
                raise ValueError(
                    f"{places} image placeholders for {len(request.pictures)} pictures of {tokens} tokens: every picture needs its "
                    "run of placeholders"
                )


def answer_requests(answering: Answering, requests: Sequence[Request]) -> list[str]:
    """Answers in plain words, as many at a time as there is room for."""
    found = [""] * len(requests)
    for number, answer in in_turn(answering, requests):
        found[number] = before_stop(answering.text(answer), answer.request.stop)
    return found
