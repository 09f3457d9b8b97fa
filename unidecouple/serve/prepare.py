"""From requests to the engine's work; what cannot be done is refused here, before it waits."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unidecouple.batch import Task
from unidecouple.data.sequences import Part, SequenceBuilder
from unidecouple.generate.answering import Request
from unidecouple.generate.drawing import Order
from unidecouple.generate.engine import Engine
from unidecouple.generate.sampler import Choice
from unidecouple.serve.errors import ApiError
from unidecouple.serve.limits import Limits
from unidecouple.serve.pictures import from_data_url, open_picture
from unidecouple.serve.schemas import ChatRequest, ImagePart, ImageRequest, Message, TextPart

ANSWER = 256
"""Tokens of an answer, unless a request says."""


@dataclass(frozen=True)
class Prepared:
    """The jobs' work of one request, and what they have in common: the seed, the prompt's length, and where answers stop."""

    work: tuple[Request, ...] | tuple[Order, ...]
    seed: int
    prompt_tokens: int
    stops: tuple[str, ...] = ()


class Preparer:
    """Reads requests on one thread of its own, beside the model's; its tokenizer is a copy, since they are not safe to share.

    Args:
        engine: whose work it prepares.
        limits: of requests.
    """

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.processor = copy.deepcopy(engine.processor)
        self.builder, self.limits, self._engine = SequenceBuilder(self.processor), limits, engine
        self.image_tokens = self.builder.seen_tokens  # of a picture, with what ends its rows
        config = (engine.answering if engine.task in (None, Task.MMU) else engine.drawing).model.config.text_config
        self.length = min(engine.length, config.max_position_embeddings)
        self._prompt = min(engine.prompt_length, config.max_position_embeddings - self.image_tokens)

    @property
    def size(self) -> str:
        """The one size of pictures."""
        return f"{self.processor.picture_size}x{self.processor.picture_size}"

    def chat(self, body: ChatRequest, uploads: Mapping[str, np.ndarray]) -> Prepared:
        """Work of a conversation; ``uploads`` are those that it names.

        Raises:
            ApiError: something of it is not to be done.
        """
        self._check_n(body.n)
        turns = self.turns(body.messages, uploads)
        try:
            sample = self.builder.conversation(turns, Task.MMU)
        except ValueError as error:
            raise ApiError(400, str(error), "messages", "invalid_text") from error
        room = self.length - len(sample.input_ids)
        wanted = body.max_completion_tokens or body.max_tokens or min(ANSWER, room)
        if room < 1 or wanted > room:
            raise ApiError(
                400,
                f"{len(sample.input_ids)} tokens of conversation and {max(wanted, 1)} of answer are more than {self.length}: "
                "shorten the one, or lower max_tokens",
                "messages" if room < 1 else "max_tokens",
                "context_length_exceeded",
            )
        seed = _seed(body.seed)
        choice = Choice(body.temperature, body.top_k, body.top_p)
        stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        work = tuple(Request(sample.input_ids, sample.pictures, wanted, choice, (seed, i), stops) for i in range(body.n))
        return Prepared(work, seed, len(sample.input_ids), stops)

    def images(self, body: ImageRequest) -> Prepared:
        """Work of pictures; raises as ``chat``."""
        self._check_n(body.n)
        if body.size not in (None, "auto", self.size):
            raise ApiError(400, f"size={body.size!r} does not exist here; sizes: {self.size}, auto", "size", "invalid_size")
        if body.partial_images and not body.stream:
            raise ApiError(400, f"partial_images={body.partial_images} needs stream: true", "partial_images", "needs_stream")
        tokens = self.prompt_tokens(body.prompt, "prompt")
        if body.negative_prompt is not None:
            tokens += self.prompt_tokens(body.negative_prompt, "negative_prompt")
        seed = _seed(body.seed)
        how = self._engine.image_defaults.filled(body.guidance_scale, body.temperature, body.top_k, body.top_p)
        work = tuple(Order(body.prompt, (seed, 0, i), how.guidance_scale, how.choice, body.negative_prompt) for i in range(body.n))
        return Prepared(work, seed, tokens)

    def _check_n(self, n: int) -> None:
        if n > self.limits.n:
            raise ApiError(400, f"n={n} is more than {self.limits.n}; ask several times", "n", "n_too_large")

    def prompt_tokens(self, prompt: str, param: str) -> int:
        """Tokens of a prompt for a picture, checked; raises as ``chat``."""
        self._check_words(len(prompt), param)
        try:
            self.builder.conversation([("user", [prompt])], Task.T2I)  # words that spell out a special token are refused by it
        except ValueError as error:
            raise ApiError(400, str(error), param, "invalid_text") from error
        count = len(self.builder.generation_prompt(prompt))
        if count > self._prompt:
            raise ApiError(400, f"{count} tokens of prompt are more than {self._prompt}", param, "context_length_exceeded")
        return count

    def _check_words(self, count: int, param: str) -> None:
        if count > self.limits.characters:
            raise ApiError(400, f"{count:,} characters are more than {self.limits.characters:,}", param, "text_too_long")

    def turns(self, messages: Sequence[Message], uploads: Mapping[str, np.ndarray]) -> list[tuple[str, list[Part]]]:
        """Turns as the sequence builder takes them, the user's last, checked for their order and the limits; raises as ``chat``."""
        turns: list[tuple[str, list[Part]]] = []
        words = pictures = 0
        for number, message in enumerate(messages):
            place = f"messages.{number}"
            role = "system" if message.role == "developer" else message.role
            spoken = len(turns) - (1 if turns and turns[0][0] == "system" else 0)
            due = ("user", "assistant")[spoken % 2]
            if role != due and (number or role != "system"):
                raise ApiError(
                    400, f"the {role}'s turn where the {due}'s is due; a system turn stands first", place, "invalid_order"
                )
            content = message.content
            given = [TextPart(type="text", text=content)] if isinstance(content, str) else content
            parts: list[Part] = []
            for part in given:
                if isinstance(part, ImagePart):
                    pictures += 1
                    if role != "user" or pictures > self.limits.pictures:
                        many = f"more than {self.limits.pictures} pictures" if role == "user" else f"a picture in the {role}'s turn"
                        raise ApiError(400, many, place, "invalid_picture")
                    parts.append(self._picture(part.image_url.url, uploads, f"{place}.image_url"))
                elif part.text.strip():
                    words += len(part.text)
                    self._check_words(words, place)
                    parts.append(part.text)
            if not parts:
                raise ApiError(400, "an empty turn", place, "empty")
            turns.append((role, parts))
        if turns[-1][0] != "user":
            raise ApiError(400, "the last turn must be the user's", "messages", "invalid_order")
        return turns

    def _picture(self, url: str, uploads: Mapping[str, np.ndarray], place: str) -> np.ndarray:
        if url in uploads:
            return uploads[url]
        return open_picture(from_data_url(url, place), self.limits, self.processor, place)


def _seed(given: int | None) -> int:
    return secrets.randbits(31) if given is None else given
