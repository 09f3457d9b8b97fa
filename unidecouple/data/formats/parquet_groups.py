"""Parquet files whose row groups do not fit memory, copied once into a file of small ones.

A row group is the least that can be read in any order, and many writers make one of a million rows. The copy is made batch by
batch, so neither making it nor reading it needs more memory for a larger file.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from unidecouple.data.formats.reader import file_state

LARGEST: Final = 32 << 20
"""Bytes of a decoded row group above which a file is copied."""
_GROUP: Final = 4 << 20
"""Bytes of a row group of the copy."""
_BATCH: Final = 32
"""Rows that are decoded at a time."""
_BUFFER: Final = 1 << 20

_log = logging.getLogger(__name__)


def has_large_groups(file: Any) -> bool:
    """Whether a row group of the ``pyarrow.parquet.ParquetFile`` is larger than ``LARGEST`` and can be cut.

    A group's stored size leaves out what a dictionary repeats, so the first rows are decoded, too.
    """
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    rows = max((group.num_rows for group in groups), default=0)
    try:
        first = next(file.iter_batches(_BATCH, use_threads=False), None)
    except (OSError, ValueError):  # reading its rows gives the reason
        first = None
    decoded = 0 if first is None else rows * first.nbytes // max(1, first.num_rows)
    return rows > 1 and max(decoded, *(group.total_byte_size for group in groups)) > LARGEST


def small_groups(path: Path, folder: Path) -> Path:
    """The copy of ``path`` in ``folder``, made if it is not there.

    Raises:
        ValueError: ``path`` cannot be read, or its copy cannot be written; nothing is left behind.
    """
    from pyarrow import Table, parquet

    target = folder / f"parquet-{file_state(path, 'small groups')}.parquet"
    if target.is_file():
        return target
    _log.info("%s has row groups of more than %d MiB: copying it once into %s", path, LARGEST >> 20, target)
    folder.mkdir(parents=True, exist_ok=True)
    hidden = folder / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with (
            parquet.ParquetFile(path, buffer_size=_BUFFER) as source,
            parquet.ParquetWriter(hidden, source.schema_arrow) as writer,
        ):
            for group in _grouped(source.iter_batches(_BATCH, use_threads=False)):
                writer.write_table(Table.from_batches(group))
        hidden.replace(target)
    except (OSError, ValueError) as error:  # pyarrow's errors are both
        raise ValueError(f"{path} could not be copied into row groups that fit memory ({target}): {error}") from error
    finally:
        hidden.unlink(missing_ok=True)
    return target


def _grouped(batches: Iterator[Any]) -> Iterator[list[Any]]:
    """Neighbouring batches together, until they have ``_GROUP`` bytes."""
    group: list[Any] = []
    for batch in batches:
        group.append(batch)
        if sum(one.nbytes for one in group) >= _GROUP:
            yield group
            group = []
    if group:
        yield group
