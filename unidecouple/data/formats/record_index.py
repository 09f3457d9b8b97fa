"""The records of some kinds from several files, by number, as one list."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unidecouple.data.formats.reader import Reader
from unidecouple.data.formats.record import KINDS, Kind, Record


class RecordIndex:
    """Holds 8 bytes per record; contents stay in their files."""

    def __init__(self, readers: Sequence[Reader], kinds: Sequence[Kind]) -> None:
        wanted = [KINDS.index(kind) for kind in kinds]
        self._readers = tuple(readers)
        self._numbers = [np.flatnonzero(np.isin(reader.kinds, wanted)) for reader in readers]
        self._starts = np.cumsum([0, *map(len, self._numbers)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def record(self, position: int) -> Record:
        """The record at ``position``.

        Raises:
            BadRecordError: its file has changed, and it can no longer be read.
        """
        reader = int(np.searchsorted(self._starts, position, side="right")) - 1
        return self._readers[reader].record(int(self._numbers[reader][position - self._starts[reader]]))
