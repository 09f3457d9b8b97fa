"""Detect the format of data files from their content, and open them; ``data_type`` forces a format."""

from __future__ import annotations

import codecs
import functools
import itertools
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from unidecouple.data.columns import check_columns
from unidecouple.data.formats.entry import folder_finder, parse
from unidecouple.data.formats.lines import JsonArray, JsonLines
from unidecouple.data.formats.reader import Reader
from unidecouple.data.formats.tables import DatasetsFolder, Parquet
from unidecouple.data.formats.token_cache import is_cache, token_readers
from unidecouple.data.formats.webdataset import WebDataset
from unidecouple.data.settings import Source
from unidecouple.inputs import LFS_POINTER, LFS_START, refuse_special

ENTRY_TYPES: Final = ("messages", "llava", "qa", "flat")
DATA_TYPES: Final = (*ENTRY_TYPES, "webdataset", "parquet", "datasets", "image_tokens")
FOLDERS: Final = ("datasets", "image_tokens")
"""Data types that are folders."""

_SUFFIXES: Final = (".jsonl", ".json", ".tar", ".parquet")
_LINES_TRIED: Final = 20
_COMPRESSED: Final = (".gz", ".zst", ".bz2", ".xz", ".zip")
_PACKED: Final = "compressed with {}, so its records cannot be read in any order: decompress it first"
_UNREADABLE: Final = {
    b"\x1f\x8b": _PACKED.format("gzip"),
    b"\x28\xb5\x2f\xfd": _PACKED.format("zstd"),
    b"BZh": _PACKED.format("bzip2"),
    b"\xfd7zXZ\x00": _PACKED.format("xz"),
    b"PK\x03\x04": "a zip archive: unpack it first",
    LFS_START: LFS_POINTER,
    codecs.BOM_UTF16_LE: "text in UTF-16: save it as UTF-8",
    codecs.BOM_UTF16_BE: "text in UTF-16: save it as UTF-8",
}
"""First bytes of files that cannot be read as they are -> what they are, and the remedy."""


def open_readers(
    path: Path,
    data_type: str | None = None,
    root: Path | None = None,
    cache: Path | None = None,
    tokenizer: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> list[Reader]:
    """Open the files that ``path`` names; one reader per file, in order of file names.

    Args:
        path: a file, a folder of such files or of ``datasets``, a cache of image tokens, or a pattern with ``*``.
        data_type: one of ``DATA_TYPES``; None detects it from the content.
        root: folder that relative image paths start from; None takes the folder of the data file.
        cache: folder for indices; None builds them again each time.
        tokenizer: hash of the image tokenizer that a cache of image tokens must have been made with.
        columns: our field name -> the user's key, see ``data/columns.py``.

    Raises:
        ValueError: there is no such file, or its format is not known or not readable.
    """
    if data_type is not None and data_type not in DATA_TYPES:
        raise ValueError(f"data_type={data_type!r} is not one of {', '.join(DATA_TYPES)}")
    check_columns(columns := columns or {})
    readers: list[Reader] = []
    for place in [path] if path.is_dir() and data_type in FOLDERS else _places(path):
        refuse_special(place)
        kind = data_type or detect(place)
        if kind == "image_tokens":
            readers += token_readers(place, cache, tokenizer)
        elif kind == "datasets":
            readers.append(DatasetsFolder(place, root, cache, columns))
        elif kind == "parquet":
            readers.append(Parquet(place, root, cache, columns))
        elif kind == "webdataset":
            readers.append(WebDataset(place, cache, columns))
        else:
            readers.append(_json_reader(place, kind if kind in ENTRY_TYPES else None, root, cache, columns))
    return readers


def open_source(source: Source, cache: Path | None = None, tokenizer: str | None = None) -> list[Reader]:
    """Call ``open_readers`` with the settings of a recipe's data source."""
    return open_readers(source.path, source.data_type, source.root, cache, tokenizer, source.columns)


def detect(path: Path) -> str:
    """Return one of ``DATA_TYPES``, or "json" if the format is detected per record.

    Raises:
        ValueError: the file is empty, compressed or in no known format.
    """
    if path.is_dir():
        return "image_tokens" if is_cache(path) else "datasets"
    with path.open("rb") as file:
        head = file.read(1 << 10)
    if not head.strip():
        raise ValueError(f"{path} is empty")
    for start, name in _UNREADABLE.items():
        if head.startswith(start):
            raise ValueError(f"{path} is {name}")
    if head.startswith(b"PAR1"):
        return "parquet"
    if head[257:262] == b"ustar" or (path.suffix == ".tar" and tarfile.is_tarfile(path)):
        return "webdataset"
    if path.suffix == ".jsonl" or _is_array(path) or _has_objects(path):
        return "json"
    raise ValueError(
        f"{path} is of no known format; known are {', '.join(DATA_TYPES)}. If it is one of them, force it by data_type"
    )


def _places(path: Path) -> list[Path]:
    """Return the files and folders that ``path`` names; each gets one reader."""
    if "*" in path.name:
        found = sorted(path.parent.glob(path.name))
    elif path.is_dir() and not _is_dataset(path):
        found = _one_kind(path, _data_files(path))
    else:
        found = [path] if path.exists() else []
    if not found:
        raise ValueError(
            _from_a_hub(path) or f"no data at {path}: give a file, a pattern, or a folder of {', '.join(_SUFFIXES)} files"
        )
    return found


def _from_a_hub(path: Path) -> str | None:
    """Return advice if ``path`` does not exist but may be a data set id, "owner/name"; else None."""
    if len(path.parts) != 2 or path.is_absolute() or path.suffix in _SUFFIXES or "*" in path.name or path.parent.exists():
        return None
    code = f"import datasets; datasets.load_dataset('{path.as_posix()}', split='train').save_to_disk('data/{path.name}')"
    return (
        f"no data at {path}. If it is a data set on the Hub, download it once (training reads records in shuffled order, which "
        f'streaming does not support): python -c "{code}", and give data/{path.name}'
    )


def _is_dataset(folder: Path) -> bool:
    return is_cache(folder) or any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _data_files(folder: Path) -> list[Path]:
    """Return the data files of ``folder`` by suffix, dangling links and named pipes included; opening those fails later.

    Raises:
        ValueError: one of them is compressed; skipping it silently would lose its records.
    """
    files = sorted(file for file in folder.iterdir() if not file.name.startswith(".") and not file.is_dir())
    for file in files:
        if file.suffix in _COMPRESSED and file.with_suffix("").suffix in _SUFFIXES:
            raise ValueError(f"{file} is compressed, and its records cannot be reached in any order: decompress it first")
    return [file for file in files if file.suffix in _SUFFIXES]


def _one_kind(folder: Path, files: Sequence[Path]) -> list[Path]:
    kinds = sorted({file.suffix for file in files})
    if len(kinds) > 1:
        raise ValueError(f"{folder} contains files of several formats ({', '.join(kinds)}): list each format as a separate source")
    return list(files)


def _json_reader(path: Path, form: str | None, root: Path | None, cache: Path | None, columns: Mapping[str, str]) -> Reader:
    entries = functools.partial(parse, find=folder_finder(root or path.parent), data_type=form, columns=columns)
    reader = JsonArray if _is_array(path) else JsonLines
    return reader(path, entries, form, cache, columns)


def _is_array(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1 << 16).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def _has_objects(path: Path) -> bool:
    """Whether one of the first lines is a JSON object."""
    with path.open("rb") as file:
        for line in itertools.islice(file, _LINES_TRIED):
            try:
                if isinstance(json.loads(line), dict):
                    return True
            except ValueError:
                continue
    return False
