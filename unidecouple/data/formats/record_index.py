"""The records of some kinds from several files, by number, as one list."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Final

import numpy as np

from unidecouple.data.formats.reader import Reader
from unidecouple.data.formats.record import KINDS, Kind, Record
from unidecouple.data.permutation import permute

_SPLIT: Final = 20250603
"""Key of the order that fractions are taken in, whatever a run's seed."""


class RecordIndex:
    """Holds 8 bytes per record; contents stay in their files.

    Args:
        readers: of the files.
        kinds: which records.
        fraction: the part of them that is listed, from and to, in an order that is shuffled by a fixed key; (0, 0.9) and (0.9, 1)
            share no record.
        chosen: per reader (records,) bool, the only records that count; None for all.
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        kinds: Sequence[Kind],
        fraction: tuple[float, float] = (0.0, 1.0),
        chosen: Sequence[np.ndarray] | None = None,
    ) -> None:
        wanted = [KINDS.index(kind) for kind in kinds]
        self._readers = tuple(readers)
        there = [np.isin(reader.kinds, wanted) for reader in readers]
        if chosen is not None:
            there = [one & mask for one, mask in zip(there, chosen, strict=True)]
        self._numbers = [np.flatnonzero(one) for one in there]
        if fraction != (0.0, 1.0):
            size = sum(map(len, self._numbers))
            first, last = (int(end * size) for end in fraction)
            rank = permute(np.arange(size), size, (_SPLIT,)) if size else np.empty(0, np.int64)
            inside = np.split((first <= rank) & (rank < last), np.cumsum([*map(len, self._numbers)])[:-1])
            self._numbers = [numbers[kept] for numbers, kept in zip(self._numbers, inside, strict=True)]
        self._starts = np.cumsum([0, *map(len, self._numbers)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def only(self, kinds: Sequence[Kind]) -> RecordIndex:
        """The records of ``kinds`` among these, in their order; a fraction was taken before."""
        wanted, found = [KINDS.index(kind) for kind in kinds], copy.copy(self)
        pairs = zip(self._readers, self._numbers, strict=True)
        found._numbers = [numbers[np.isin(reader.kinds[numbers], wanted)] for reader, numbers in pairs]
        found._starts = np.cumsum([0, *map(len, found._numbers)])
        return found

    def kind(self, position: int) -> Kind:
        """The kind of the record at ``position``, which is not read."""
        reader, number = self._place(position)
        return KINDS[int(reader.kinds[number])]

    def record(self, position: int) -> Record:
        """The record at ``position``.

        Raises:
            BadRecordError: its file has changed, and it can no longer be read.
        """
        reader, number = self._place(position)
        return reader.record(number)

    def _place(self, position: int) -> tuple[Reader, int]:
        """The reader of the record at ``position``, and its number there."""
        chosen = int(np.searchsorted(self._starts, position, side="right")) - 1
        return self._readers[chosen], int(self._numbers[chosen][position - self._starts[chosen]])
