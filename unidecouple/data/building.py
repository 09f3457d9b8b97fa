"""From a record to a sample: its pictures decoded at the model's size, its turns as the model's own token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unidecouple.batch import NO_IMAGE_TOKEN, Task
from unidecouple.data.formats.record import BadRecordError, ImageTokens, Picture, Record
from unidecouple.data.pictures import Shaper
from unidecouple.data.sequences import Part, Sample, SequenceBuilder


@dataclass(frozen=True)
class Built:
    """A sample, and the pictures to be drawn, uint8 (H, W, 3) in order, for whose tokens zeros still stand in it."""

    sample: Sample
    waiting: tuple[np.ndarray, ...]

    def with_tokens(self, tokens: Sequence[Sequence[int]]) -> Sample:
        """The sample with ``tokens`` of the waiting pictures."""
        values = iter([token for picture in tokens for token in picture])
        image = [token if token == NO_IMAGE_TOKEN else next(values) for token in self.sample.image_tokens]
        return replace(self.sample, image_tokens=image)


def build(record: Record, shaper: Shaper, builder: SequenceBuilder, dropped: bool = False, max_length: int | None = None) -> Built:
    """Decode and tokenize ``record``.

    Args:
        record: from a reader.
        shaper, builder: of the model.
        dropped: hides the prompt of a picture to be drawn.
        max_length: most tokens.

    Raises:
        BadRecordError: a picture cannot be read, a text cannot be tokenized, or the sample is too long.
    """
    waiting: list[np.ndarray] = []

    def part(value: str | Picture, draws: bool) -> Part:
        if isinstance(value, str):
            return value
        if not draws:
            return shaper.understood(value)
        if isinstance(value, ImageTokens):
            return _cached(value, builder.num_image_tokens)
        waiting.append(shaper.drawn(value))
        return (0,) * builder.num_image_tokens

    draws = record.kind == "t2i"
    try:
        turns = [(turn.role, [part(p, draws and turn.role == "assistant") for p in turn.parts]) for turn in record.turns]
        sample = builder.conversation(turns, Task.T2I if draws else Task.MMU, dropped)
    except (ValueError, OSError) as error:
        raise BadRecordError(record.where, str(error)) from error
    if max_length is not None and len(sample.input_ids) > max_length:
        raise BadRecordError(record.where, f"{len(sample.input_ids)} tokens are more than max_length={max_length}")
    return Built(sample, tuple(waiting))


def _cached(picture: ImageTokens, count: int) -> tuple[int, ...]:
    tokens = tuple(picture.read().tolist())
    if len(tokens) != count:
        raise ValueError(f"{len(tokens)} tokens a picture in {picture.shard}, where the model has {count}: encode it again")
    return tokens
