"""Random access to the records of a file: an index of byte ranges, built in one pass and kept."""

from __future__ import annotations

import abc
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from unidecouple.data.formats.record import KINDS, BadRecordError, Record
from unidecouple.files import write_array_atomic

BAD: Final = len(KINDS)
"""In an index: the kind of a record that cannot be parsed."""

_VERSION: Final = 3
_ROWS: Final = 1 << 14
"""Rows of an index that are held as Python objects while it is built."""


class Reader(Protocol):
    """Records of one file or folder, each readable without those before it."""

    @property
    def path(self) -> Path:
        """The file or folder."""

    @property
    def format(self) -> str:
        """Name of its format."""

    @property
    def kinds(self) -> np.ndarray:
        """(records,) int64: each record's position in ``KINDS``, or ``BAD``."""

    def record(self, index: int) -> Record:
        """One record.

        Raises:
            BadRecordError: it cannot be parsed; so for every ``BAD`` one.
        """


def kind_number(read: Callable[[], Record]) -> int:
    """What stands in an index for the record that ``read`` returns."""
    try:
        return KINDS.index(read().kind)
    except BadRecordError:
        return BAD


def file_state(path: Path, what: str) -> str:
    """20 hexadecimal digits of ``path`` as it is now (size and time) and of ``what`` is computed from it."""
    state = path.stat()
    key = [str(_VERSION), str(path.absolute()), str(state.st_size), str(state.st_mtime_ns), what]
    return hashlib.sha256(chr(0).join(key).encode()).hexdigest()[:20]


def cached(path: Path, what: str, cache: Path | None, build: Callable[[], np.ndarray]) -> np.ndarray:
    """``build()``, or what it returned before for this ``path`` as it is now (size and time) if ``cache`` keeps it."""
    if cache is None:
        return build()
    file = cache / f"index-{file_state(path, what)}.npy"
    if not file.is_file():
        write_array_atomic(file, build())
    return np.load(file, mmap_mode="r")


def stacked(rows: Iterator[tuple[int, ...]], width: int) -> np.ndarray:
    """``rows`` as one int64 array (rows, ``width``), of which few are Python objects at a time."""
    blocks = [np.zeros((0, width), np.int64)]
    while block := list(itertools.islice(rows, _ROWS)):
        blocks.append(np.array(block, np.int64))
    return np.concatenate(blocks)


class RangeReader(abc.ABC):
    """A file whose records are byte ranges.

    A format says where they lie (``ranges``) and what they hold (``read_range``). The index, int64 (records, 4), has start, end,
    line (from 1) and kind of each; a stretch that cannot be read is one record of kind ``BAD``.
    """

    def __init__(self, path: Path, settings: str = "", cache: Path | None = None) -> None:
        self._path = path
        self._index = cached(path, f"{type(self).__name__} {settings}", cache, self._build)

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    @abc.abstractmethod
    def format(self) -> str:
        """Name of the format."""

    @property
    def kinds(self) -> np.ndarray:
        """See ``Reader``."""
        return self._index[:, 3]

    def record(self, index: int) -> Record:
        """See ``Reader``."""
        start, end, line, _ = self._index[index].tolist()
        try:
            return self.read_range(start, end, line)
        except OSError as error:
            raise BadRecordError(f"{self.path}:{line}", f"it cannot be read: {error.strerror or error}") from error

    @abc.abstractmethod
    def ranges(self) -> Iterator[tuple[int, int, int]]:
        """(start, end, line) of every record, in one pass through the file."""

    @abc.abstractmethod
    def read_range(self, start: int, end: int, line: int) -> Record:
        """The record there.

        Raises:
            BadRecordError: there is none that can be used.
        """

    def _build(self) -> np.ndarray:
        rows = ((*found, kind_number(functools.partial(self.read_range, *found))) for found in self.ranges())
        return stacked(rows, 4)
