"""From a record to a sample: its images decoded at the model's size, its turns as the model's own token ids."""

from __future__ import annotations

from dataclasses import replace

from unidecouple.batch import Task
from unidecouple.data.formats.record import BadRecordError, EncodedSource, ImageTokens, Record, StoredImage
from unidecouple.data.pictures import ImagePreprocessor
from unidecouple.data.sequences import Sample, SequenceBuilder, TurnPart


class TooLongError(BadRecordError):
    """A record has more tokens than ``max_length``."""


def build(
    record: Record, preprocessor: ImagePreprocessor, builder: SequenceBuilder, dropped: bool = False, max_length: int | None = None
) -> Sample:
    """Decode and tokenize ``record``. Images to be generated keep their pixels where the record has no tokens of them.

    Args:
        record: from a reader.
        preprocessor, builder: of the model.
        dropped: whether the prompt of an image to be generated is dropped.
        max_length: most tokens.

    Raises:
        BadRecordError: an image cannot be read, or a text cannot be tokenized.
        TooLongError: the sample is too long.
    """
    is_t2i = record.kind == "t2i"

    def part(value: str | StoredImage, generated: bool) -> TurnPart:
        if isinstance(value, str):
            return value
        if not generated:
            return preprocessor.for_understanding(value)
        if isinstance(value, ImageTokens):
            return _cached(value, builder.num_image_tokens)
        return preprocessor.for_generation(value, bool(record.sources))

    try:
        turns = [(turn.role, [part(p, is_t2i and turn.role == "assistant") for p in turn.parts]) for turn in record.turns]
        sample = builder.conversation(turns, Task.T2I if is_t2i else Task.MMU, dropped)
        if sample.sources and all(isinstance(one, EncodedSource) for one in record.sources):
            tokens = [one.tokens for one in record.sources if isinstance(one, EncodedSource)]
            sample = replace(sample, sources=tuple(_cached(one, builder.num_image_tokens) for one in tokens))
    except (ValueError, OSError) as error:
        raise BadRecordError(record.where, str(error)) from error
    if max_length is not None and len(sample.input_ids) > max_length:
        raise TooLongError(record.where, f"{len(sample.input_ids)} tokens are more than max_length={max_length}")
    return sample


def _cached(picture: ImageTokens, count: int) -> tuple[int, ...]:
    tokens = tuple(picture.read().tolist())
    if len(tokens) != count:
        raise ValueError(f"{len(tokens)} tokens per image in {picture.shard}, but the model uses {count}: encode it again")
    return tokens
