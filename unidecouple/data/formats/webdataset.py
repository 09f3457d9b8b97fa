"""WebDataset: tar files in which consecutive files with the same key form one sample.

The key is the library's (webdataset 1.0, ``tariterators.base_plus_ext``): the folder, and the file's name up to its first dot. So
``img.000.png`` and ``img.001.png`` have one key, ``img``. As in the library, only regular files count, names without a dot and
metadata (``__name__``) are skipped, and suffixes are compared in lower case. Two deviations: names that begin with a dot
(macOS's ``._`` files) and the folder ``__MACOSX`` are skipped everywhere, since they would split every sample; and two files with
the same name, or two texts with one key, make a bad sample, where the library silently merges them.

A sample is a text (``key.txt``) that describes its one image, or a JSON object (``key.json``) in any of the entry formats, whose
images are given by name or in the order of the archive. One pass over the tar headers finds all samples.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from unidecouple.data.columns import ANSWERS, PICTURES, PROMPTS, QUESTIONS, rename
from unidecouple.data.formats.entry import parse
from unidecouple.data.formats.qa import TAG, question_key
from unidecouple.data.formats.reader import RangeReader
from unidecouple.data.formats.record import BadRecordError, ImageFile, Record, StoredImage
from unidecouple.inputs import QUOTED, printable, quoted

_LOG = logging.getLogger(__name__)
_BLOCK: Final = 512
_PICTURES: Final = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm")
_TEXTS: Final = ("txt", "json")
_WORDS: Final = ("messages", "conversations", *PROMPTS, *QUESTIONS, *ANSWERS)
"""Keys of a JSON object that contain the text of a sample."""
_META: Final = re.compile(r"(?:.*/)?__(?:[^/]*__(?:$|/)|MACOSX/)")


class WebDataset(RangeReader):
    """One uncompressed tar file. A range without a valid header is one bad record; reading continues at the next valid header."""

    def __init__(self, path: Path, cache: Path | None = None, columns: Mapping[str, str] | None = None) -> None:
        self._columns = columns or {}
        super().__init__(path, str(sorted(self._columns.items())) if columns else "", cache)
        if not _has_end(path):
            _warn_of_cut(path, path.stat().st_mtime_ns)

    @property
    def format(self) -> str:
        """See ``Reader``."""
        return "webdataset"

    def ranges(self) -> Iterator[tuple[int, int, int]]:
        """See ``RangeReader``; the line number is the number of the sample in the archive."""
        number, start, end, key = 0, 0, 0, ""
        for member, first, last in _members(self.path):
            mine = "" if member is None else _counted(member)
            if mine is None:
                continue
            if end and (mine != key or not mine):
                number += 1
                yield start, end, number
                start = first
            elif not end:
                start = first
            end, key = last, mine
        if end:
            yield start, end, number + 1

    def read_range(self, start: int, end: int, line: int) -> Record:
        """See ``RangeReader``."""
        where = f"{self.path}: sample {line}"
        pictures: dict[str, StoredImage] = {}
        texts: dict[str, list[tuple[str, bytes]]] = {kind: [] for kind in _TEXTS}
        with self.path.open("rb") as file:
            for member, first, last in _members_between(file, start, end):
                if member is None:
                    raise BadRecordError(
                        where, f"bytes {first} to {last} are not a valid part of a tar file: it is damaged or truncated"
                    )
                key = _counted(member)
                if key is None:
                    continue
                where = f"{self.path}: sample {line} ({printable(key, QUOTED)})"
                name = Path(member.name).name
                kind = name.rpartition(".")[2].lower()
                if kind in _PICTURES:
                    if name in pictures:
                        raise BadRecordError(where, f"it has two files named {quoted(name)}: rename one of them")
                    pictures[name] = ImageFile(self.path, member.offset_data, member.size)
                elif kind in _TEXTS:
                    file.seek(member.offset_data)
                    texts[kind].append((name, file.read(member.size)))
        return _sample(_one_each(texts, len(pictures), where), pictures, where, self._columns)


def _has_end(path: Path) -> bool:
    """Whether the archive ends as tar ends every archive: with two blocks of zeros."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 2 * _BLOCK))
        return not size % _BLOCK and file.read() == bytes(2 * _BLOCK)


@functools.cache
def _warn_of_cut(path: Path, changed: int) -> None:
    """Warn once per process and state of the file: each task and split opens it again."""
    _LOG.warning(
        "%s lacks the end mark of a tar file (two blocks of zeros): it may be cut off, with samples lost. Copy or write it again",
        path,
    )


def _one_each(texts: Mapping[str, list[tuple[str, bytes]]], pictures: int, where: str) -> dict[str, bytes]:
    for kind, found in texts.items():
        if len(found) > 1:
            names = f"{quoted(found[0][0])} and {quoted(found[1][0])}"
            raise BadRecordError(
                where,
                f"it has {len(found)} .{kind} files ({names}) and {pictures} images with one key, the name up to its first dot: "
                "rename them so that samples differ before that dot",
            )
    return {kind: found[0][1] for kind, found in texts.items() if found}


def _sample(texts: Mapping[str, bytes], pictures: Mapping[str, StoredImage], where: str, columns: Mapping[str, str]) -> Record:
    try:
        entry = json.loads(texts["json"]) if "json" in texts else {}
        prompt = texts["txt"].decode() if "txt" in texts else None
    except (ValueError, RecursionError) as error:
        raise BadRecordError(where, f"its text cannot be read: {error}") from error
    if not isinstance(entry, Mapping):
        raise BadRecordError(where, f"its JSON is {type(entry).__name__}; give an object")
    try:
        entry = rename(entry, columns) if "json" in texts else entry
    except KeyError as error:
        raise BadRecordError(where, str(error.args[0])) from error
    if prompt is not None and not any(entry.get(key) is not None for key in _WORDS):
        entry = {"prompt": prompt}  # the JSON contains metadata only
    if not entry:
        raise BadRecordError(where, f"no .txt or .json beside the image: {_ORDER}")
    if not pictures and "json" not in texts:
        raise BadRecordError(where, f"no image ({', '.join(_PICTURES)}) beside the .txt: {_ORDER}")
    return parse(_with_pictures(entry, list(pictures)), where, lambda name: pictures[_known(name, pictures)])


def _with_pictures(entry: Mapping[str, Any], names: list[str]) -> Mapping[str, Any]:
    """Return ``entry`` with the images of the archive, in order, if it names none itself."""
    if any(entry.get(key) is not None for key in PICTURES):
        return entry
    if question_key(entry) is not None:
        return {**entry, "images": names}
    turns = entry.get("messages") or entry.get("conversations")
    if turns:
        return {**entry, "images": names} if TAG in json.dumps(turns) else entry
    return {**entry, "image": names[0]} if len(names) == 1 else entry


def _known(name: str, pictures: Mapping[str, StoredImage]) -> str:
    base = Path(name).name
    if base not in pictures:
        raise KeyError(f"there is no image {quoted(name)} in the sample; it has {printable(', '.join(pictures), QUOTED) or 'none'}")
    return base


def _counted(member: tarfile.TarInfo) -> str | None:
    """Return the key of a member, never empty; None if it belongs to no sample."""
    folder, slash, base = member.name.rpartition("/")
    key, dot, _ = base.partition(".")
    if not member.isfile() or not key or not dot or _META.match(member.name):
        return None
    return folder + slash + key


_ORDER: Final = "files of one sample must follow each other (tar --sort=name)"

Member = tuple[tarfile.TarInfo | None, int, int]
"""(member, start of its header, end of its content); the member is None for a damaged range."""


def _members(path: Path) -> Iterator[Member]:
    with path.open("rb") as file:
        yield from _members_between(file, 0, path.stat().st_size)


def _members_between(file: BinaryIO, start: int, end: int) -> Iterator[Member]:
    """Yield the members from ``start``; tarfile alone would take a damaged header for the end of the archive."""
    while start < end:
        place = start
        try:
            file.seek(place)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while place < end and (member := tar.next()) is not None:
                    last = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                    if member.offset_data + member.size > end:
                        break
                    yield member, place, last
                    place = last
                    tar.members.clear()  # type: ignore[attr-defined]  # it keeps every member it has seen
        except tarfile.TarError:
            pass
        start, damaged = _next_header(file, place, end)
        if damaged:
            yield None, place, start


def _next_header(file: BinaryIO, place: int, end: int) -> tuple[int, bool]:
    """Return where the next valid header after ``place`` starts, or ``end``, and whether other bytes than 0 lie before it."""
    file.seek(place)
    damaged = False
    for start in range(place, end, _BLOCK):
        block = file.read(min(_BLOCK, end - start))
        if block.count(0) == len(block):
            continue
        if start > place and len(block) == _BLOCK:
            try:
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                pass
            else:
                return start, damaged
        damaged = True
    return end, damaged
