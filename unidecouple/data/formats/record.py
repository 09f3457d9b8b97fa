"""The record that every format is parsed into: turns whose images are references to data that is not read yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from unidecouple.inputs import printable, quoted, refuse_surrogates, special_file

Kind = Literal["mmu", "t2i", "text"]
KINDS: Final[tuple[Kind, ...]] = ("mmu", "t2i", "text")
Role = Literal["system", "user", "assistant"]


_WHERE, _REASON = 480, 640
"""Most characters of an error's place and reason."""
_LARGEST: Final = 1 << 30
"""Bytes of an encoded image."""


class BadRecordError(ValueError):
    """One record cannot be used. ``where`` is file and line, ``reason`` the cause; both are safe to print."""

    def __init__(self, where: str, reason: str) -> None:
        where, reason = printable(where, _WHERE), printable(reason, _REASON)
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason


@dataclass(frozen=True)
class ImageFile:
    """An image in a file, or in ``size`` bytes of it from ``offset`` (a member of a tar)."""

    path: Path
    offset: int = 0
    size: int | None = None

    def read(self) -> bytes:
        """Its encoded bytes.

        Raises:
            OSError: the file cannot be read, is no plain file, is larger than a GiB, or ends before the image does.
        """
        if kind := special_file(self.path):
            raise OSError(f"it is {kind}, not a file")
        if self.size is None and self.path.stat().st_size > _LARGEST:
            raise OSError(f"its file has more than {_LARGEST:,} bytes")
        with self.path.open("rb") as file:
            file.seek(self.offset)
            content = file.read(-1 if self.size is None else self.size)
        if self.size is not None and len(content) < self.size:
            raise OSError(f"{self.path} ends {self.size - len(content)} bytes before the image does")
        return content


@dataclass(frozen=True)
class ImageBytes:
    """An image that came with its record: from a data URL or a parquet column."""

    content: bytes

    def read(self) -> bytes:
        """Its encoded bytes."""
        return self.content


@dataclass(frozen=True)
class ImageTokens:
    """An image as discrete tokens: a row of a shard of our cache (safetensors, "tokens", uint16)."""

    shard: Path
    row: int

    def read(self) -> np.ndarray:
        """(tokens of an image,) int64.

        Raises:
            OSError: the shard is missing.
            ValueError: it is broken, or has no such row.
        """
        try:
            with safe_open(self.shard, "np") as file:
                return file.get_slice("tokens")[self.row : self.row + 1][0].astype(np.int64)
        except (SafetensorError, IndexError) as error:
            raise ValueError(f"{self.shard}, row {self.row}: {error}. The cache is broken; encode it again") from error


@dataclass(frozen=True)
class EncodedSource:
    """A source image of our cache: its encoded bytes, which are understood, and its tokens, which an image is generated from."""

    picture: ImageFile
    tokens: ImageTokens

    def read(self) -> bytes:
        """Its encoded bytes; raises as ``ImageFile.read``."""
        return self.picture.read()


StoredImage = ImageFile | ImageBytes | ImageTokens | EncodedSource


@dataclass(frozen=True)
class Turn:
    """Text and images of one speaker in order, none of them empty."""

    role: Role
    parts: tuple[str | StoredImage, ...]

    @property
    def pictures(self) -> tuple[StoredImage, ...]:
        """Its images, in order."""
        return tuple(part for part in self.parts if not isinstance(part, str))


@dataclass(frozen=True)
class Record:
    """One sample of any format.

    Attributes:
        kind: "mmu" (images are understood, answers learned), "t2i" (the assistant's images are generated, from the user's if there
            are any) or "text".
        turns: optionally a system turn, then user and assistant in turn, the assistant last.
        where: file and line or row, for messages.
    """

    kind: Kind
    turns: tuple[Turn, ...]
    where: str

    @property
    def generated(self) -> tuple[StoredImage, ...]:
        """Images to be generated."""
        return tuple(p for t in self.turns if t.role == "assistant" for p in t.pictures) if self.kind == "t2i" else ()

    @property
    def sources(self) -> tuple[StoredImage, ...]:
        """Images that others are generated from."""
        return tuple(p for t in self.turns if t.role != "assistant" for p in t.pictures) if self.kind == "t2i" else ()


def make_record(turns: Sequence[Turn], task: object, where: str) -> Record:
    """Make a record of ``turns``.

    Its kind: "t2i" with an image in an assistant turn, else "mmu" with one in a user turn, else "text". An explicit ``task`` takes
    precedence; under "mmu" an assistant's image is to be understood, too.

    Raises:
        BadRecordError: turns in an impossible order, a task that they cannot be, or a text that is no Unicode.
    """
    _check_order(turns, where)
    try:
        for part in (part for turn in turns for part in turn.parts if isinstance(part, str)):
            refuse_surrogates(part)
    except ValueError as error:
        raise BadRecordError(where, str(error)) from error
    generated = any(turn.pictures for turn in turns if turn.role == "assistant")
    shown = any(turn.pictures for turn in turns if turn.role != "assistant")
    if task is None:
        return Record("t2i" if generated else "mmu" if shown else "text", tuple(turns), where)
    if task not in KINDS:
        raise BadRecordError(where, f'"task": {quoted(task)} is not one of {", ".join(KINDS)}')
    if task == "t2i" and not generated:
        raise BadRecordError(where, '"task": "t2i" needs the image to generate in an assistant turn')
    if task == "text" and (generated or shown):
        raise BadRecordError(where, '"task": "text" has an image; leave out the task, or the image')
    return Record(KINDS[KINDS.index(task)], tuple(turns), where)


def _check_order(turns: Sequence[Turn], where: str) -> None:
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    if not spoken:
        raise BadRecordError(where, "the conversation has no turns")
    for number, turn in enumerate(spoken):
        wanted = ("user", "assistant")[number % 2]
        if turn.role != wanted:
            raise BadRecordError(where, f"turn {number + 1} is the {turn.role}'s, but the {wanted}'s is expected")
        if not turn.parts:
            raise BadRecordError(where, f"turn {number + 1}, the {turn.role}'s, is empty")
    if spoken[-1].role != "assistant":
        raise BadRecordError(where, "the last turn has no answer")
