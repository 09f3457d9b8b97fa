"""Read parquet files and folders of ``datasets.save_to_disk``; pyarrow and datasets are optional packages.

A row has the same fields as a line of jsonl. Images may be bytes, paths, or the {bytes, path} that ``datasets`` stores.
"""

from __future__ import annotations

import abc
import functools
import importlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from unidecouple.data.columns import PICTURES, SOURCES
from unidecouple.data.formats.entry import Find, folder_finder, parse
from unidecouple.data.formats.parquet_groups import has_large_groups, small_groups
from unidecouple.data.formats.reader import cached, kind_number, stacked
from unidecouple.data.formats.record import BadRecordError, Record
from unidecouple.extras import missing_package

_GROUPS_KEPT: Final = 4
"""Row groups of a parquet file kept in memory; a shuffled epoch reads one for nearly every row, so they should be small."""


class TableReader(abc.ABC):
    """Base of the table formats: reads rows by number as dictionaries."""

    format = "table"

    def __init__(self, path: Path, root: Path | None, cache: Path | None, columns: Mapping[str, str] | None = None) -> None:
        self._path, self._find, self._columns = path, folder_finder(root or path.parent), columns or {}
        shown = (*PICTURES, *SOURCES)
        self.pictures = {*shown, *(column for name, column in self._columns.items() if name in shown)}
        stands_for = path if path.is_file() else path / "state.json"
        settings = f"{self.format} {sorted(self._columns.items())}" if columns else self.format
        self.kinds = cached(stands_for, settings, cache, self._build)

    @property
    def path(self) -> Path:
        """The file or folder."""
        return self._path

    @abc.abstractmethod
    def row(self, index: int) -> dict[str, Any]:
        """Return a row with all its columns."""

    @abc.abstractmethod
    def plain_rows(self) -> Iterator[dict[str, Any] | None]:
        """Yield all rows with a placeholder for each image, which is enough to detect the task; None for an unreadable row."""

    def record(self, index: int) -> Record:
        """See ``Reader``."""
        where = f"{self.path}: row {index}"
        try:
            row = self.row(index)
        except (OSError, ValueError) as error:  # pyarrow raises both
            raise BadRecordError(where, f"it cannot be read: {error}") from error
        return parse(row, where, self._find, columns=self._columns)

    def _build(self) -> np.ndarray:
        find: Find = folder_finder(self.path.parent)
        read = functools.partial(parse, where="", find=find, columns=self._columns)
        return stacked(((kind_number(functools.partial(read, row)),) for row in self.plain_rows()), 1)[:, 0]


class Parquet(TableReader):
    """One parquet file, read by row group."""

    format = "parquet"

    def __init__(
        self, path: Path, root: Path | None = None, cache: Path | None = None, columns: Mapping[str, str] | None = None
    ) -> None:
        parquet = _require("pyarrow.parquet", "parquet files")
        try:
            self._file = parquet.ParquetFile(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is not a readable parquet file: {error}") from error
        if has_large_groups(self._file):
            if cache is None:
                self._own_cache = tempfile.TemporaryDirectory()  # lives as long as the reader
                cache = Path(self._own_cache.name)
            self._file = parquet.ParquetFile(small_groups(path, cache))
        sizes = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])
        self._group = functools.lru_cache(_GROUPS_KEPT)(self._file.read_row_group)
        super().__init__(path, root, cache, columns)

    def row(self, index: int) -> dict[str, Any]:
        """See ``TableReader``."""
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._group(group).slice(index - self._starts[group], 1).to_pylist()[0]

    def plain_rows(self) -> Iterator[dict[str, Any] | None]:
        """See ``TableReader``."""
        there = self._file.schema_arrow.names
        columns = [name for name in there if name not in self.pictures]
        pictures = [name for name in there if name in self.pictures]
        for group in range(self._file.num_row_groups):
            try:
                words = self._file.read_row_group(group, columns=columns)
                shown = self._file.read_row_group(group, columns=pictures)
            except (OSError, ValueError):  # the reason is given once its rows are asked for
                yield from [None] * self._file.metadata.row_group(group).num_rows
            else:
                yield from _named_rows(words, shown)


class DatasetsFolder(TableReader):
    """A folder that ``Dataset.save_to_disk`` wrote."""

    format = "datasets"

    def __init__(
        self, path: Path, root: Path | None = None, cache: Path | None = None, columns: Mapping[str, str] | None = None
    ) -> None:
        if (path / "dataset_dict.json").is_file():
            splits = json.loads((path / "dataset_dict.json").read_text()).get("splits", [])
            raise ValueError(
                f"{path} contains the splits {', '.join(splits)}: give the folder of one split, "
                f"such as {path / (splits or ['train'])[0]}"
            )
        loaded = _require("datasets", "folders of the datasets library").load_from_disk(str(path))
        self._data = loaded.with_format("arrow")  # images stay encoded
        super().__init__(path, root, cache, columns)

    def row(self, index: int) -> dict[str, Any]:
        """See ``TableReader``."""
        return self._data[index : index + 1].to_pylist()[0]

    def plain_rows(self) -> Iterator[dict[str, Any] | None]:
        """See ``TableReader``."""
        for start in range(0, len(self._data), 1000):
            table = self._data[start : start + 1000]
            pictures = table.select([name for name in table.column_names if name in self.pictures])
            yield from _named_rows(table.drop_columns(pictures.column_names), pictures)


def _named_rows(words: Any, pictures: Any) -> Iterator[dict[str, Any] | None]:
    """Yield the rows of two tables with placeholders for images; None for a row whose text is not UTF-8."""
    try:
        rows = words.to_pylist()
    except ValueError:
        rows = [_row(words, number) for number in range(len(words))]
    yield from (None if row is None else {**row, **_names(pictures, number)} for number, row in enumerate(rows))


def _row(table: Any, number: int) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = table.slice(number, 1).to_pylist()[0]
    except ValueError:
        return None
    return row


def _names(pictures: Any, number: int) -> dict[str, Any]:
    """Return the image columns of one row with a placeholder for each image; null stays null."""
    out: dict[str, Any] = {}
    for name, column in zip(pictures.column_names, pictures.columns, strict=True):
        cell = column[number]
        many = cell.is_valid and str(column.type).startswith(("list", "large_list"))
        out[name] = None if not cell.is_valid else ["image"] * len(cell) if many else "image"
    return out


def _require(module: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing_package(f"reading {what}", "data", error) from error
