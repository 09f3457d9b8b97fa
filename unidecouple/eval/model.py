"""A checkpoint to be scored: it answers queries and generates images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np

from unidecouple.data.pictures import ImagePreprocessor
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.eval.benchmark import Metadata, Picture, Query, Sources
from unidecouple.generate.image import decode_images, draw_tokens
from unidecouple.generate.jobs import ImageJob
from unidecouple.generate.likelihood import passage_log_likelihood
from unidecouple.generate.padding import check_length
from unidecouple.generate.sampling import SamplingParams
from unidecouple.generate.text import answer
from unidecouple.models.base import UnifiedModel
from unidecouple.models.processing import UnifiedProcessor

GREY: Final = 127
"""What a blinded model sees: the colour that Janus pads images with."""


@dataclass(frozen=True)
class EvalModel:
    """A model to be scored (``benchmark.ScoredModel``).

    Attributes:
        model: in eval mode, on its device.
        processor: of the model.
        max_new_tokens: longest answer.
        sampling: of image tokens.
        seed: of generated images.
    """

    model: UnifiedModel
    processor: UnifiedProcessor
    max_new_tokens: int = 16
    sampling: SamplingParams = field(default_factory=SamplingParams)
    seed: int = 0

    @cached_property
    def _builder(self) -> SequenceBuilder:
        return SequenceBuilder(self.processor)

    @cached_property
    def _preprocessor(self) -> ImagePreprocessor:
        return ImagePreprocessor(self.processor)

    def check_queries(self, queries: Sequence[Query]) -> None:
        """Refuse questions that cannot be put to the model, before any is asked.

        Raises:
            ValueError: one spells out a special token, or leaves no room for its answer; with its file and line.
        """
        for query in queries:
            with _named(query.where or query.id):
                if query.picture is None:
                    for ids in self._choice_ids(query) or [self._builder.passage(query.text)]:
                        check_length(len(ids), 0, self._longest)
                    continue
                prompt = self._builder.understanding_prompt(query.text, len(query.pictures))
                check_length(len(prompt), self.max_new_tokens, self._longest)

    def check_prompts(self, metadata: Sequence[Metadata], sources: Sources = ()) -> None:
        """Refuse prompts that the model cannot draw; as ``check_queries``, with the prompt's number from 0."""
        row_ends = len(self._builder.row_end) * self._builder.picture.rows
        for number, line in enumerate(metadata):
            with _named(f"prompt {number}"):
                prompt = self._builder.generation_prompt(line["prompt"], images=len(sources[number]) if sources else 0)
                check_length(len(prompt), self.model.num_image_tokens + row_ends, self._longest)

    @property
    def _longest(self) -> int:
        return int(self.model.config.text_config.max_position_embeddings)

    def ask(self, queries: Sequence[Query]) -> list[str]:
        """Greedy answers, one per query, or likelihoods of passages; an image that cannot be read raises ``ValueError``."""
        if all(query.picture is None for query in queries):
            return [self._choices(query) if query.choices else self._likelihood(query.text) for query in queries]
        return self._answer([self._see(query) for query in queries], queries)

    def ask_grey(self, queries: Sequence[Query]) -> list[str]:
        """The same with a grey image in place of each: what the words alone are worth."""
        side = self._preprocessor.size
        grey = np.full((side, side, 3), GREY, np.uint8)
        return self._answer([[grey] * len(query.pictures) for query in queries], queries)

    def ask_text(self, queries: Sequence[Query]) -> list[str]:
        """The same words with no image in the conversation, which training may never have had: a floor of another kind."""
        return self._answer(None, queries)

    def generate(self, prompts: Sequence[str], num_images: int, first: int, sources: Sources = ()) -> list[list[np.ndarray]]:
        """Images of consecutive prompts; see ``benchmark.ScoredModel``."""
        jobs = [
            ImageJob.of(self._builder, prompt, (self.seed, number, copy), self.sampling, pictures=[*map(self._image, shown)])
            for number, (prompt, shown) in enumerate(zip(prompts, sources or [()] * len(prompts), strict=True), first)
            for copy in range(num_images)
        ]
        pictures = decode_images(self.model, draw_tokens(self.model, self._builder, jobs))
        return [list(pictures[at : at + num_images]) for at in range(0, len(pictures), num_images)]

    def _likelihood(self, text: str) -> str:
        """What ``Query`` states of a passage."""
        ids = self._builder.passage(text)
        unknown = sum(one == self.processor.tokenizer.unk_token_id for one in ids)
        return f"{passage_log_likelihood(self.model, ids)!r} {len(ids) - 1} {unknown}"

    def _choices(self, query: Query) -> str:
        """What ``Query`` states of choices."""
        start = len(self._builder.passage(query.text))
        return " ".join(repr(passage_log_likelihood(self.model, ids, start)) for ids in self._choice_ids(query))

    def _choice_ids(self, query: Query) -> list[list[int]]:
        """Ids of the text with each choice."""
        return [self._builder.passage(f"{query.text} {choice}") for choice in query.choices]

    def _answer(self, pictures: Sequence[Sequence[np.ndarray]] | None, queries: Sequence[Query]) -> list[str]:
        words = [query.text for query in queries]
        return answer(self.model, self._builder, pictures, words, self.max_new_tokens, batch_size=max(len(words), 1))

    def _see(self, query: Query) -> list[np.ndarray]:
        with _named(query.where):
            return [self._image(picture) for picture in query.pictures]

    def _image(self, picture: Picture) -> np.ndarray:
        side = self._preprocessor.size
        if not isinstance(picture, np.ndarray):
            return self._preprocessor.for_understanding(picture)
        if picture.shape != (side, side, 3):
            raise ValueError(
                f"the synthetic benchmark's images are {picture.shape[0]} pixels a side, the model's {side}: "
                "give published files with --data"
            )
        return picture


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """Put ``where`` before the message of a ``ValueError``."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from error
