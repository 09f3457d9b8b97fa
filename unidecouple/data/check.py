"""What a source of data contains, and what is wrong with it: every record is parsed and tokenized, every image decoded."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from unidecouple.data.build_sample import TooLongError, build
from unidecouple.data.formats import BadRecordError, Reader, Record
from unidecouple.data.formats.record import ImageTokens
from unidecouple.data.pictures import ImagePreprocessor
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.inputs import quoted

QUANTILES: Final = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
SHOWN_PROBLEMS: Final = 5
"""Problems that are printed; the others are counted."""
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
        edits: samples whose images are generated from images of the user.
        lengths: tokens of a good record -> number of records.
        max_length: tokens above which a record is a problem; None: no limit.
        too_long: records of more tokens than that.
        problems: file, line and reason of the first bad ones.
        bad: number of bad records.
        words: of the good records.
        digests: of each good record's texts and images, 8 bytes each; equal records have equal ones.
    """

    path: Path
    formats: dict[str, int]
    samples: dict[str, int]
    understood: int
    generated: int
    edits: int
    lengths: Counter[int]
    max_length: int | None
    too_long: int
    problems: list[str]
    bad: int
    words: Words
    digests: np.ndarray

    @property
    def bad_ratio(self) -> float:
        """Fraction of bad records."""
        return self.bad / max(1, self.bad + sum(self.samples.values()))

    @property
    def repeated(self) -> int:
        """Good records that are equal to an earlier one of the source."""
        return len(self.digests) - len(np.unique(self.digests))

    def shared(self, other: Findings) -> int:
        """Number of different records that ``other`` contains, too; 0 for a held-out file and its training file."""
        return len(np.intersect1d(self.digests, other.digests))

    def length_at(self, share: float) -> int:
        """The quantile of the lengths at ``share``, an actual length: the one nearest in rank."""
        rank = round(share * (self.lengths.total() - 1))
        lengths = sorted(self.lengths)
        return lengths[int(np.searchsorted(np.cumsum([self.lengths[length] for length in lengths]), rank, side="right"))]

    def lines(self) -> Iterator[str]:
        """The findings as text."""
        yield f"{self.path}: " + ", ".join(f"{name} ({count} file{'s' * (count > 1)})" for name, count in self.formats.items())
        yield "  samples   " + (", ".join(f"{kind} {count:,}" for kind, count in sorted(self.samples.items())) or "none")
        yield f"  images    {self.understood:,} to be understood, {self.generated:,} to be generated"
        if self.edits:
            yield f"  edits     {self.edits:,} of the t2i samples generate an image from the user's images"
        if self.lengths:
            yield "  tokens    " + ", ".join(f"{name} {self.length_at(share):,}" for name, share in QUANTILES.items())
            if self.max_length is not None:
                yield f"  too long  {self.too_long:,} records of more than {self.max_length:,} tokens, not truncated"
            yield from self.words.lines()
        if self.repeated:
            yield f"  repeated  {self.repeated:,} records are equal to an earlier one"
        yield f"  problems  {self.bad:,} ({self.bad_ratio:.2%} of the records)"
        yield from (f"    {problem}" for problem in self.problems)
        if self.bad > len(self.problems):
            yield f"    and {self.bad - len(self.problems):,} more"


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
    lengths: Counter[int] = Counter()
    problems: list[str] = []
    words = _Words(builder)
    digests = array("Q")  # a list of bytes would need ten times the memory
    understood = generated = edits = done = bad = too_long = 0
    total = sum(len(reader.kinds) for reader in readers)
    for reader in readers:
        for number in range(len(reader.kinds)):
            done += 1
            progress(done, total)
            try:
                record = reader.record(number)
                sample = build(record, preprocessor, builder, max_length=max_length)
                digests.append(int.from_bytes(digest(record)[:8], "little"))
            except (BadRecordError, OSError) as error:
                bad += 1
                too_long += isinstance(error, TooLongError)
                problems += [str(error)] if bad <= SHOWN_PROBLEMS else []
                continue
            samples[record.kind] += 1
            lengths[len(sample.input_ids)] += 1
            words.add(record)
            generated += len(record.generated)
            understood += len(sample.pictures)
            edits += bool(record.sources)
    formats = dict(Counter(reader.format for reader in readers))
    return Findings(
        path=path,
        formats=formats,
        samples=dict(samples),
        understood=understood,
        generated=generated,
        edits=edits,
        lengths=lengths,
        max_length=max_length,
        too_long=too_long,
        problems=problems,
        bad=bad,
        words=words.counted(),
        digests=np.array(digests, np.uint64),
    )


def digest(record: Record) -> bytes:
    """16 bytes that are equal for records of equal texts and images, whatever file and format they come from.

    Raises:
        OSError: an image can no longer be read.
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
