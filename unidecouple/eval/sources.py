"""What readers of published files share: where a benchmark lies in the user's folder, its pictures, its rows, their hashes."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from unidecouple.data.formats.record import ImageBytes, ImageFile
from unidecouple.files import sha256_file

_PICTURES = ("", "images", "val2014", "COCO/val2014", "coco/val2014")
_COLUMNS_OF_PICTURES = ("bytes", "path")


def find(data: Path, benchmark: str, patterns: Sequence[str]) -> list[Path]:
    """Files or folders that match one of ``patterns`` in ``data/<benchmark>`` or, if there are none, in ``data`` itself.

    Raises:
        ValueError: none match; the message says what was looked for.
    """
    for folder in (data / benchmark, data):
        found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
        if found:
            return found
    raise ValueError(
        f"{data} has no {benchmark} (looked for {', '.join(patterns)}, there and in {benchmark}/): copy its files there"
    )


def read_jsonl(path: Path, needed: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The objects of ``path``, one a line; blank lines are skipped.

    Raises:
        ValueError: a line that is no JSON object, or lacks one of the keys ``needed``.
    """
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is no JSON: {error}; is the download whole?") from error
        lacking = [key for key in needed if key not in row]
        if lacking:
            raise ValueError(f"{path}, line {number} has no {lacking[0]!r}: give the published file, unchanged")
        yield row


class Pictures:
    """Pictures by name, in any of the usual places beside a benchmark's files."""

    def __init__(self, *folders: Path) -> None:
        self._places = [folder / place for folder in folders for place in _PICTURES]

    def __call__(self, name: str) -> ImageFile:
        """The picture called ``name``.

        Raises:
            ValueError: it is in none of the places.
        """
        for place in self._places:
            if (place / name).is_file():
                return ImageFile(place / name)
        looked = ", ".join(dict.fromkeys(str(place) for place in self._places if place.is_dir()))
        raise ValueError(f"picture {name} is missing (looked in {looked}): copy the benchmark's pictures to one of these folders")


def hashes(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """Name below ``root`` -> SHA-256, of files."""
    return {path.relative_to(root).as_posix(): sha256_file(path) for path in paths if path.is_file()}


def table_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a parquet file, or of a folder that ``Dataset.save_to_disk`` wrote; pictures stay encoded.

    Raises:
        ValueError: pyarrow or datasets is not installed, or the file cannot be read.
    """
    try:
        if path.is_file():
            return importlib.import_module("pyarrow.parquet").read_table(path).to_pylist()
        loaded = importlib.import_module("datasets").load_from_disk(str(path))
        return loaded.with_format("arrow")[:].to_pylist()
    except ImportError as error:
        raise ValueError(f"{path} needs pyarrow and datasets: pip install 'unidecouple[data]'") from error
    except (OSError, ValueError) as error:  # pyarrow's errors are both
        raise ValueError(f"{path} cannot be read: {error}; is the download whole?") from error


def stored_picture(cell: Any, where: str, folder: Path) -> ImageBytes | ImageFile:
    """A picture as ``datasets`` stores it: {bytes, path}.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(cell, dict) and cell.get("bytes"):
        return ImageBytes(cell["bytes"])
    if isinstance(cell, dict) and cell.get("path"):
        return ImageFile(folder / cell["path"])
    raise ValueError(f"{where} holds {type(cell).__name__} where a picture with {' or '.join(_COLUMNS_OF_PICTURES)} should be")
