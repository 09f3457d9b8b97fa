"""What readers of published files share: where a benchmark lies in the user's folder, its images, its tables, their hashes."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from unidecouple.data.formats.record import ImageBytes, ImageFile
from unidecouple.extras import missing_package
from unidecouple.files import sha256_file
from unidecouple.inputs import quoted

_PICTURES = ("", "images", "val2014", "COCO/val2014", "coco/val2014")
_COLUMNS_OF_PICTURES = ("bytes", "path")


def find(data: Path, benchmark: str, patterns: Sequence[str]) -> list[Path]:
    """Files or folders that match one of ``patterns`` in ``data/<benchmark>`` or, if there are none, in ``data`` itself.

    Raises:
        ValueError: none match, and the message says what was looked for; or one is neither a file nor a folder.
    """
    for folder in (data / benchmark, data):
        found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
        for path in found:
            if not (path.is_file() or path.is_dir()):
                raise ValueError(f"{path} is neither a file nor a folder: copy the benchmark's file there")
        if found:
            return found
    raise ValueError(
        f"{data} has no {benchmark} (looked for {', '.join(patterns)}, there and in {benchmark}/): copy its files there"
    )


class ImageFinder:
    """Images by name, in any of the usual places beside a benchmark's files."""

    def __init__(self, *folders: Path) -> None:
        self._places = [folder / place for folder in folders for place in _PICTURES]

    def __call__(self, name: str, where: str) -> ImageFile:
        """The image called ``name`` by the record at ``where``.

        Raises:
            ValueError: it is in none of the places.
        """
        for place in self._places:
            if _is_file(place / name):
                return ImageFile(place / name)
        looked = ", ".join(dict.fromkeys(str(place) for place in self._places if place.is_dir()))
        raise ValueError(f"{where}: image {quoted(name)} is missing (looked in {looked}): copy the images to one of these folders")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long, as an image in base64 is
        return False


def hashes(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """Name below ``root`` -> SHA-256, of files."""
    return {path.relative_to(root).as_posix(): sha256_file(path) for path in paths if path.is_file()}


def table_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a parquet file, or of a folder that ``Dataset.save_to_disk`` wrote; images stay encoded.

    Raises:
        ValueError: pyarrow or datasets is not installed, or the file cannot be read.
    """
    try:
        if path.is_file():
            return importlib.import_module("pyarrow.parquet").read_table(path).to_pylist()
        loaded = importlib.import_module("datasets").load_from_disk(str(path))
        return loaded.with_format("arrow")[:].to_pylist()
    except ImportError as error:
        raise missing_package(f"reading {path}", "data", error) from error
    except (OSError, ValueError) as error:  # pyarrow's errors are both
        raise ValueError(f"{path} cannot be read: {error}; is the download whole?") from error


def stored_image(cell: Any, where: str, folder: Path) -> ImageBytes | ImageFile:
    """An image as ``datasets`` stores it: {bytes, path}.

    Raises:
        ValueError: it is neither, or the file is missing.
    """
    if isinstance(cell, dict) and isinstance(cell.get("bytes"), bytes) and cell["bytes"]:
        return ImageBytes(cell["bytes"])
    if isinstance(cell, dict) and isinstance(cell.get("path"), str) and cell["path"]:
        if not _is_file(folder / cell["path"]):
            raise ValueError(f"{where}: image {quoted(cell['path'])} is missing in {folder}")
        return ImageFile(folder / cell["path"])
    raise ValueError(f"{where} holds {type(cell).__name__} where an image with {' or '.join(_COLUMNS_OF_PICTURES)} should be")
