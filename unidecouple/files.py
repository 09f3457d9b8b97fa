"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed. And their hashes.

Whatever stops a write (a full disk, Ctrl-C, a fault in the code that fills a folder), what stood at the path before still
stands there, and nothing half-written stays beside it. A killed process may leave a hidden ``.<name>.<hex>.tmp``.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from unidecouple.ownership import MARKER, check_directory, mark, recover

_FULL = {errno.ENOSPC: "no space left", errno.EDQUOT: "the quota is used up", errno.EFBIG: "the limit on a file's size is reached"}
_FULL_IN_TEXT = re.compile(r"No space left on device|os error (?:28|27|122)\b|inline_container\.cc|\d+ requested and \d+ written")
"""How safetensors, torch.save and numpy word it: their errors bear no number of the system's."""


class StorageError(OSError):
    """Something could not be written; the message says what, that earlier files are intact, and what to do."""


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Make ``content`` what ``path`` holds; folders above it are made.

    Raises:
        StorageError: it could not be written; an earlier file at ``path`` is as it was.
    """
    hidden = _beside(path, "tmp")
    with _storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            hidden.write_bytes(content)
            _sync(hidden)
            hidden.replace(path)
            _sync(path.parent)
        finally:
            hidden.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str) -> None:
    """``write_bytes_atomic`` of ``text`` as UTF-8.

    Raises:
        StorageError: as ``write_bytes_atomic``.
    """
    write_bytes_atomic(path, text.encode())


def write_array_atomic(path: Path, array: np.ndarray) -> None:
    """``write_bytes_atomic`` of ``array`` in numpy's own format, to be read by ``np.load``.

    Raises:
        StorageError: as ``write_bytes_atomic``.
    """
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    write_bytes_atomic(path, content.getvalue())


def write_json_atomic(path: Path, value: object) -> None:
    """``write_text_atomic`` of ``value`` as indented JSON.

    Raises:
        StorageError: as ``write_bytes_atomic``.
        ValueError: NaN or infinity in ``value``, which JSON cannot hold; nothing is written.
    """
    write_text_atomic(path, _json(path, value, indent=1) + "\n")


def append_jsonl(path: Path, record: Mapping[str, object]) -> None:
    """Add one line of JSON to ``path``, which is made when absent.

    Raises:
        StorageError: it could not be written; the file is as it was.
        ValueError: NaN or infinity in ``record``, which JSON cannot hold; nothing is written.
    """
    line = (_json(path, record) + "\n").encode("utf-8", "backslashreplace")  # half a surrogate pair, as JSON escapes it
    with _storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                written = 0
                while written < len(line):  # a disk that fills up takes a part first and refuses the rest
                    written += file.write(line[written:])
            except BaseException:
                file.truncate(before)
                raise


@contextlib.contextmanager
def atomic_directory(target: Path, sources: Iterable[Path] = (), *, internal: bool = False) -> Iterator[Path]:
    """A new folder to fill, which becomes ``target`` when the block ends without an error, and vanishes otherwise.

    An existing ``target`` is replaced only if it is empty or this package wrote all files in it (``ownership.MARKER``). It stays
    until the new folder is whole and on the disk; then it is renamed aside, the new one takes its name, and it is deleted. (A
    power cut between the two renames leaves it as a hidden ``.<name>.<hex>.old``, which the next call puts back.)

    Args:
        target: the folder; a link to a folder is followed.
        sources: what is read; ``target`` must not be one of them, nor lie inside or around one.
        internal: ``target`` lies in a folder that this package manages and has checked (a run's, a cache). It is replaced
            whatever it holds, and gets no marker.

    Raises:
        ValueError: ``target`` must not be replaced; see ``ownership.check_directory``.
        StorageError: the disk is full, or the folder cannot be made or renamed. Other errors of the block pass unchanged.
    """
    real, sources = Path(os.path.realpath(target)), list(sources)
    if not internal:
        with _storage_errors(target):
            recover(real)
        check_directory(target, sources)
    hidden, aside = _beside(real, "tmp"), _beside(real, "old")
    with _storage_errors(target):
        hidden.mkdir(parents=True)
    try:
        with _storage_errors(target, only_full=True):
            yield hidden
        with _storage_errors(target):
            if not internal:
                mark(hidden)
                check_directory(target, sources)  # again: filling it may have taken hours
            for path in (*hidden.rglob("*"), hidden):
                _sync(path)
            _swap(hidden, real, aside)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    shutil.rmtree(aside, ignore_errors=True)


def remove_directory(target: Path) -> None:
    """Delete a folder such that nobody finds half of it under its name: first it is renamed to a hidden one.

    Raises:
        StorageError: it cannot be renamed; it is as it was.
    """
    aside = _beside(target, "old")
    with _storage_errors(target):
        target.rename(aside)
    shutil.rmtree(aside)


def read_text(path: Path) -> str:
    """Return the UTF-8 text of ``path``, decompressed where its name ends in ``.gz``.

    Raises:
        OSError: the file cannot be read, or its compressed data are damaged.
        UnicodeDecodeError: it is not UTF-8.
    """
    if path.suffix != ".gz":
        return path.read_text(encoding="utf-8")
    try:
        return gzip.decompress(path.read_bytes()).decode("utf-8")
    except (EOFError, zlib.error) as error:
        raise OSError(f"{path} is damaged ({error}); copy it again") from error


def write_gzip_atomic(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as gzip; equal texts give equal bytes. Raises as ``write_bytes_atomic``."""
    write_bytes_atomic(path, gzip.compress(text.encode("utf-8"), 9, mtime=0))


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tree(path: Path, without: Container[str] = ()) -> str:
    """Hexadecimal SHA-256 of a folder: of its files' relative names and hashes, whatever order the disk lists them in.

    Files named ``without``, and this package's marker, are left out.

    Raises:
        ValueError: ``path`` is no folder.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is no folder, so it has no hash; sha256_file is for single files")
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    entries = [[name, sha256_file(path / name)] for name in names if name not in without and name != MARKER]
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def _json(path: Path, value: object, indent: int | None = None) -> str:
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path} was not written: {error}; write None where there is no number") from error


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.{ending}")


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _swap(new: Path, target: Path, aside: Path) -> None:
    """Rename ``new`` to ``target``, an existing ``target`` to ``aside``; both or neither."""
    replaces = target.exists()
    if replaces:
        target.rename(aside)
    try:
        new.rename(target)
    except BaseException:
        if replaces:
            aside.rename(target)
        raise
    _sync(target.parent)


@contextlib.contextmanager
def _storage_errors(path: Path, only_full: bool = False) -> Iterator[None]:
    """Turn errors of the disk into ``StorageError``s about ``path``; with ``only_full``, those of a full disk alone."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        full = _full_disk(error)
        if full:
            remedy = f"Free some space ({_free(path)}), or write elsewhere, and run the command again."
            raise StorageError(f"could not write {path}: {full}. Earlier files are intact. {remedy}") from error
        if isinstance(error, OSError) and not only_full:
            remedy = "Check the path and its permissions, or write elsewhere, and run the command again."
            raise StorageError(f"could not write {path}: {error.strerror}. Earlier files are intact. {remedy}") from error
        raise


def _full_disk(error: Exception) -> str | None:
    if isinstance(error, OSError) and error.errno in _FULL:
        return _FULL[error.errno]
    return f"no space left ({error})" if _FULL_IN_TEXT.search(str(error)) else None


def _free(path: Path) -> str:
    folder = next((parent for parent in path.absolute().parents if parent.is_dir()), Path(path.anchor))
    return f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB are free in {folder}"
