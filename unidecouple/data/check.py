"""What a source of data contains, and all that is wrong with it: every record is parsed and tokenized, every image decoded."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from unidecouple.data.build_sample import build
from unidecouple.data.formats import BadRecordError, Reader, Record
from unidecouple.data.formats.record import ImageTokens
from unidecouple.data.pictures import ImagePreprocessor
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.inputs import quoted

QUANTILES: Final = {"min": 0.0, "median": 0.5, "95%": 0.95, "max": 1.0}
_SHOWN: Final = 8
"""Unknown words that are printed."""
_MANY: Final = 0.1
"""Fraction of unknown words above which a warning is printed."""


@dataclass(frozen=True)
class Words:
    """Words of a source, and those that the model's tokenizer does not have.

    Attributes:
        vocabulary: entries that can occur in a text.
        tokens: of all texts.
        unknown: word -> how often it occurs without being in the vocabulary.
    """

    vocabulary: int
    tokens: int = 0
    unknown: Counter[str] = field(default_factory=Counter)

    @property
    def unknown_ratio(self) -> float:
        """Fraction of tokens that are unknown words."""
        return self.unknown.total() / max(1, self.tokens)

    def lines(self) -> Iterator[str]:
        """The words as text."""
        yield f"  words     {self.tokens:,} tokens of text, {self.unknown.total():,} of them unknown ({self.unknown_ratio:.2%})"
        if self.unknown:
            often = ", ".join(quoted(word) for word, _ in self.unknown.most_common(_SHOWN))
            yield f"    unknown: {often}{', …' if len(self.unknown) > _SHOWN else ''}"
        if self.unknown_ratio > _MANY:
            yield (
                f"    warning: this model's tokenizer has {self.vocabulary:,} words, and all others become one unknown word to it. "
                "Train on words that it has, or take a checkpoint with a larger vocabulary (--model)"
            )


@dataclass(frozen=True)
class Findings:
    """Contents and problems of one source.

    Attributes:
        path: as it was given.
        formats: format -> files of it.
        samples: kind -> good records.
        understood, generated: images to be understood, and images to be generated.
        lengths: tokens of each good record.
        problems: file, line and reason of each bad one.
        words: of the good records.
        digests: of each good record's texts and pictures; equal records have equal ones.
    """

    path: Path
    formats: dict[str, int]
    samples: dict[str, int]
    understood: int
    generated: int
    lengths: list[int]
    problems: list[str]
    words: Words
    digests: list[bytes]

    @property
    def bad_ratio(self) -> float:
        """Fraction of bad records."""
        return len(self.problems) / max(1, len(self.problems) + sum(self.samples.values()))

    @property
    def repeated(self) -> int:
        """Good records that are equal to an earlier one of the source."""
        return len(self.digests) - len(set(self.digests))

    def shared(self, other: Findings) -> int:
        """Number of different records that ``other`` contains, too; 0 for a held-out file and its training file."""
        return len(set(self.digests) & set(other.digests))

    def lines(self) -> Iterator[str]:
        """The findings as text."""
        yield f"{self.path}: " + ", ".join(f"{name} ({count} file{'s' * (count > 1)})" for name, count in self.formats.items())
        yield "  samples   " + (", ".join(f"{kind} {count:,}" for kind, count in sorted(self.samples.items())) or "none")
        yield f"  images    {self.understood:,} to be understood, {self.generated:,} to be generated"
        if self.lengths:
            values = np.quantile(self.lengths, list(QUANTILES.values()), method="nearest").astype(int)
            yield "  tokens    " + ", ".join(f"{name} {value:,}" for name, value in zip(QUANTILES, values, strict=True))
            yield from self.words.lines()
        if self.repeated:
            yield f"  repeated  {self.repeated:,} records are equal to an earlier one"
        yield f"  problems  {len(self.problems):,} ({self.bad_ratio:.2%} of the records)"
        yield from (f"    {problem}" for problem in self.problems)


def check(
    path: Path,
    readers: Sequence[Reader],
    preprocessor: ImagePreprocessor,
    builder: SequenceBuilder,
    max_length: int | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Findings:
    """Check every record of ``readers``, which are those of ``path``.

    Args:
        path: to name the source.
        readers: from ``open_readers``.
        preprocessor, builder: of the model to be trained.
        max_length: tokens above which a record is a problem.
        progress: called as progress(records done, of).
    """
    samples: Counter[str] = Counter()
    lengths: list[int] = []
    problems: list[str] = []
    words = _Words(builder)
    digests: list[bytes] = []
    understood = generated = done = 0
    total = sum(len(reader.kinds) for reader in readers)
    for reader in readers:
        for number in range(len(reader.kinds)):
            done += 1
            progress(done, total)
            try:
                record = reader.record(number)
                sample = build(record, preprocessor, builder, max_length=max_length)
                digests.append(digest(record))
            except (BadRecordError, OSError) as error:
                problems.append(str(error))
                continue
            samples[record.kind] += 1
            lengths.append(len(sample.input_ids))
            words.add(record)
            generated += len(record.generated)
            understood += len(sample.pictures)
    formats = dict(Counter(reader.format for reader in readers))
    return Findings(path, formats, dict(samples), understood, generated, lengths, problems, words.counted(), digests)


def digest(record: Record) -> bytes:
    """16 bytes that are equal for records of equal texts and pictures, whatever file and format they come from.

    Raises:
        OSError: a picture can no longer be read.
    """
    found = hashlib.blake2b(digest_size=16)
    for turn in record.turns:
        for part in turn.parts:
            content = part.encode() if isinstance(part, str) else part.read()
            kind = "words" if isinstance(part, str) else "tokens" if isinstance(part, ImageTokens) else "picture"
            content = content if isinstance(content, bytes) else content.tobytes()
            found.update(f"{turn.role} {kind} {len(content)} ".encode() + content)
    return found.digest()


class _Words:
    """Counts words of records."""

    def __init__(self, builder: SequenceBuilder) -> None:
        self._builder, self._tokens = builder, 0
        self._unknown: Counter[str] = Counter()

    def add(self, record: Record) -> None:
        for part in (part for turn in record.turns for part in turn.parts if isinstance(part, str)):
            tokens, unknown = self._builder.unknown_words(part)
            self._tokens += tokens
            self._unknown.update(word.lower() for word in unknown)

    def counted(self) -> Words:
        return Words(self._builder.known_words, self._tokens, self._unknown)
