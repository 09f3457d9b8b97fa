"""Users' own data: every format becomes records that can be read in any order."""

from __future__ import annotations

from unidecouple.data.formats.detect import DATA_TYPES, open_readers, open_source
from unidecouple.data.formats.reader import BAD, Reader
from unidecouple.data.formats.record import KINDS, BadRecordError, Kind, Record, Turn
from unidecouple.data.formats.record_index import RecordIndex

__all__ = [
    "BAD",
    "DATA_TYPES",
    "KINDS",
    "BadRecordError",
    "Kind",
    "Reader",
    "Record",
    "RecordIndex",
    "Turn",
    "open_readers",
    "open_source",
]
