"""From requests to the engine's jobs; invalid requests are refused here, before they are queued."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unidecouple.batch import Task
from unidecouple.data.sequences import Sample, SequenceBuilder, TurnPart
from unidecouple.generate.engine import Engine
from unidecouple.generate.jobs import AnswerJob, ImageJob, copies
from unidecouple.generate.sampling import SamplingParams
from unidecouple.serve.errors import ApiError
from unidecouple.serve.limits import Limits
from unidecouple.serve.schemas import ChatRequest, ImagePart, ImageRequest, Message

ANSWER = 256
"""Default of ``max_tokens``."""


@dataclass(frozen=True)
class Prepared:
    """The jobs of one request.

    Attributes:
        jobs: one per answer or image.
        seed: of all of them.
        prompt_tokens: of the conversation or prompt, for the usage that is reported.
        source_tokens: those of them that are of source images.
        stops: texts that end an answer.
    """

    jobs: tuple[AnswerJob, ...] | tuple[ImageJob, ...]
    seed: int
    prompt_tokens: int
    stops: tuple[str, ...] = ()
    source_tokens: int = 0


class Preparer:
    """Turns requests into jobs on a thread of its own; it copies the tokenizer, since tokenizers are not thread-safe.

    Args:
        engine: runs the jobs.
        limits: what a request may ask for.
    """

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.processor = copy.deepcopy(engine.processor)
        self.builder, self.limits, self._engine = SequenceBuilder(self.processor), limits, engine
        self.image_tokens = self.builder.seen_tokens  # per image to be understood, row ends included
        config = (engine.answers if Task.MMU in engine.tasks else engine.images).model.config.text_config
        self._context: int = config.max_position_embeddings
        self.context_length = min(engine.max_length, self._context)
        self._max_prompt_tokens = engine.max_prompt_length

    @property
    def size(self) -> str:
        """The only size of images, as "384x384"."""
        return f"{self.processor.picture_size}x{self.processor.picture_size}"

    def chat(self, body: ChatRequest, pictures: Mapping[str, np.ndarray]) -> Prepared:
        """Return the jobs of a conversation that passed ``check``; ``pictures`` maps each address in it to its image.

        Raises:
            ApiError: the request cannot be served.
        """
        sample = self.conversation(self.turns(body.messages, pictures))
        room = self.context_length - len(sample.input_ids)
        wanted = body.max_completion_tokens or body.max_tokens or min(ANSWER, room)
        if room < 1 or wanted > room:
            raise ApiError(
                400,
                f"{len(sample.input_ids)} tokens of conversation and {max(wanted, 1)} of answer exceed the limit of "
                f"{self.context_length}: shorten the conversation or lower max_tokens",
                "messages" if room < 1 else "max_tokens",
                "context_length_exceeded",
            )
        seed = _seed(body.seed)
        sampling = SamplingParams(temperature=body.temperature, top_k=body.top_k, top_p=body.top_p)
        stops = tuple(body.stop)
        jobs = tuple(AnswerJob(sample.input_ids, sample.pictures, wanted, sampling, (seed, i), stops) for i in range(body.n))
        return Prepared(jobs, seed, len(sample.input_ids), stops)

    def images(self, body: ImageRequest, pictures: Sequence[np.ndarray] = ()) -> Prepared:
        """Return the jobs of an image request, with source images or without; raises as ``chat``."""
        self.check_n(body.n)
        if body.size not in (None, "auto", self.size):
            raise ApiError(400, f"size={body.size!r} does not exist here; sizes: {self.size}, auto", "size", "invalid_size")
        if body.partial_images and not body.stream:
            raise ApiError(400, f"partial_images={body.partial_images} needs stream: true", "partial_images", "needs_stream")
        given = {name: getattr(body, name) for name in vars(self._engine.image_sampling)}
        sampling = self._engine.image_sampling.override(**given)
        count = len(pictures)
        prompt = self.prompt_ids(body.prompt, "prompt", count)
        tokens, negative, prompts = len(prompt), self.builder.hidden_prompt(prompt), 1
        if body.negative_prompt is not None:
            negative, prompts = self.prompt_ids(body.negative_prompt, "negative_prompt", count), 2
            tokens += len(negative)
        seed, shown = _seed(body.seed), tuple(pictures)
        job = ImageJob(prompt, negative, (), sampling, shown, shown if prompts == 2 else ())
        sources = prompts * count * self.builder.source_length
        return Prepared(tuple(copies([job], body.n, seed)), seed, tokens, source_tokens=sources)

    def check_n(self, n: int) -> None:
        """Refuse more than ``limits.n`` answers or images."""
        if n > self.limits.n:
            raise ApiError(400, f"n={n} is more than {self.limits.n}; ask several times", "n", "n_too_large")

    def prompt_ids(self, prompt: str, param: str, images: int = 0) -> list[int]:
        """Check a prompt with ``images`` source images and return its token ids; raises as ``chat``."""
        self.check_words(len(prompt), param)
        try:
            ids = self.builder.generation_prompt(prompt, images=images)
        except ValueError as error:
            raise ApiError(400, f"{param}: {error}", param, "invalid_text") from error
        limit = min(self._max_prompt_tokens + images * self.builder.source_length, self._context - self.image_tokens)
        if len(ids) > limit:
            raise ApiError(400, f"{len(ids)} prompt tokens exceed the limit of {limit}", param, "context_length_exceeded")
        return ids

    def check_text(self, text: str, param: str) -> None:
        """Refuse a text of a conversation that is too long or spells out a special token."""
        self.check_words(len(text), param)
        try:
            self.builder.check_words(text)
        except ValueError as error:
            raise ApiError(400, f"{param}: {error}", param, "invalid_text") from error

    def check_words(self, count: int, param: str) -> None:
        """Refuse more than ``limits.characters``."""
        if count > self.limits.characters:
            raise ApiError(400, f"{param}: {count:,} characters are more than {self.limits.characters:,}", param, "text_too_long")

    def check(self, messages: Sequence[Message]) -> dict[str, str]:
        """Check the order of turns and the limits. Returns each image address and the first field that contains it.

        Raises:
            ApiError: the first message that is wrong.
        """
        addresses: dict[str, str] = {}
        words = pictures = 0
        first = 1 if _role(messages[0]) == "system" else 0
        for number, message in enumerate(messages):
            place, role = f"messages.{number}", _role(message)
            expected = ("user", "assistant")[(number - first) % 2]
            if role != expected and (number or role != "system"):
                raise ApiError(
                    400,
                    f"{place}: a turn of the {role}, but the {expected}'s is expected; a system turn comes first",
                    place,
                    "invalid_order",
                )
            for index, part in enumerate(message.content):
                where = f"{place}.content.{index}"
                if isinstance(part, ImagePart):
                    pictures += 1
                    if role != "user" or pictures > self.limits.pictures:
                        many = f"more than {self.limits.pictures} images" if role == "user" else f"an image in the {role}'s turn"
                        raise ApiError(400, f"{where}: {many}", where, "invalid_image")
                    addresses.setdefault(part.image_url.url, f"{where}.image_url")
                else:
                    words += len(part.text)
                    self.check_words(words, place)
            if role != "assistant" and not any(isinstance(part, ImagePart) or part.text.strip() for part in message.content):
                raise ApiError(400, f"{place}.content: is missing, or an empty turn", f"{place}.content", "empty")
        if _role(messages[-1]) != "user":
            raise ApiError(400, "messages: the last turn must be the user's", "messages", "invalid_order")
        return addresses

    def turns(self, messages: Sequence[Message], pictures: Mapping[str, np.ndarray]) -> list[tuple[str, list[TurnPart]]]:
        """Return one turn per message for the sequence builder; ``pictures`` maps addresses to images."""
        return [
            (
                _role(message),
                [
                    pictures[part.image_url.url] if isinstance(part, ImagePart) else part.text
                    for part in message.content
                    if isinstance(part, ImagePart) or part.text.strip()
                ],
            )
            for message in messages
        ]

    def conversation(self, turns: Sequence[tuple[str, Sequence[TurnPart]]]) -> Sample:
        """Return the tokens of a conversation.

        Raises:
            ApiError: 400, which names the message whose text spells out a special token.
        """
        try:
            return self.builder.conversation(turns, Task.MMU)
        except ValueError as error:
            for number, (_, parts) in enumerate(turns):
                self.check_text(" ".join(part for part in parts if isinstance(part, str)), f"messages.{number}")
            raise ApiError(400, f"messages: {error}", "messages", "invalid_text") from error


def _role(message: Message) -> str:
    return "system" if message.role == "developer" else message.role


def _seed(given: int | None) -> int:
    return secrets.randbits(31) if given is None else given
