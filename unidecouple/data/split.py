"""Divide records into parts by their images: records that share an image are on one side. Warn of held-out files in both parts."""

from __future__ import annotations

import filecmp
import functools
import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from unidecouple.data.formats.detect import open_source
from unidecouple.data.formats.reader import BAD, Reader, cached, stacked
from unidecouple.data.formats.record import KINDS, BadRecordError, EncodedSource, ImageBytes, ImageFile, StoredImage
from unidecouple.data.permutation import permute
from unidecouple.data.settings import Files, Source

_LOG = logging.getLogger(__name__)

_KEY: Final = 20250604
"""Of the order that parts are taken in, whatever a run's seed."""

Opened = Sequence[tuple[Source, Sequence[Reader]]]


def in_part(opened: Opened, part: tuple[float, float], cache: Path | None = None) -> list[list[np.ndarray]]:
    """Whether each record is in ``part`` of all: for every source and reader (records,) bool.

    Records that share an image, in whatever source and task, form a group. Groups of understanding alone, of generation alone and
    of both are divided separately, each in an order that is shuffled by a fixed key, so that every part has its share of both
    tasks. A group that a boundary cuts belongs to the later part; (0, x) and (x, 1) share no image, and the latter is never empty.

    An image is known by its file (and place in it), by its content where it is stored in the record, and by its row in a cache of
    image tokens. A cached image is thus another one than the file that it was made from.
    """
    sizes = [len(reader.kinds) for _, readers in opened for reader in readers]
    starts = np.cumsum([0, *sizes])
    kinds = np.concatenate([np.zeros(0, np.int64), *(reader.kinds for _, readers in opened for reader in readers)])
    flat = [(source, reader) for source, readers in opened for reader in readers]
    pairs = [_images(source, reader, cache) + np.array([start, 0]) for (source, reader), start in zip(flat, starts, strict=False)]
    chosen = _chosen(_groups(np.concatenate([np.zeros((0, 2), np.int64), *pairs]), len(kinds)), kinds, part)
    masks = iter(np.split(chosen, starts[1:-1]))
    return [[next(masks) for _ in readers] for _, readers in opened]


def warn_of_training_files(files: Files, cache: Path | None = None) -> None:
    """Warn of a file in ``files.validation`` that is trained on, too, by path or content; disjoint ``fraction`` are two data sets.

    Raises:
        ValueError: there is no such file.
    """
    trained, held_out = (
        [(source, open_source(source, cache)) for source in sources] for sources in (files.sources, files.validation)
    )
    by_size: dict[int, list[tuple[Source, Sequence[Reader], Path]]] = defaultdict(list)
    for source, readers in trained:
        for reader in readers:
            by_size[_size(reader.path)].append((source, readers, reader.path))
    for source, readers in held_out:
        for path in (reader.path for reader in readers):
            for other, its_readers, its_path in by_size.get(_size(path), ()):
                if _equal(path, its_path) and not _apart((source, readers), (other, its_readers)):
                    same = "is trained on, too" if path.samefile(its_path) else f"equals {its_path}, which is trained on"
                    _warn(f"the held-out file {path} {same}")


@functools.cache
def _warn(found: str) -> None:
    """Warn once per process: a command opens the same files more than once."""
    _LOG.warning(
        "%s, so its scores are of training data. Leave --validation (data.validation) out to hold a fraction of the records "
        "out, or give other files",
        found,
    )


def _apart(one: tuple[Source, Sequence[Reader]], other: tuple[Source, Sequence[Reader]]) -> bool:
    """Whether two sources have the same files and fractions of them that do not overlap."""
    (first, last), (start, end) = one[0].fraction, other[0].fraction
    files = [[reader.path for reader in readers] for _, readers in (one, other)]
    return (last <= start or end <= first) and len(files[0]) == len(files[1]) and all(map(_equal, *files))


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size


def _equal(one: Path, other: Path) -> bool:
    """Whether two files, or two folders, are the same or have equal contents."""
    if one.samefile(other):
        return True
    if not (one.is_dir() and other.is_dir()):
        return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)
    names = [sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()) for folder in (one, other)]
    return names[0] == names[1] and all(filecmp.cmp(one / name, other / name, shallow=False) for name in names[0])


def _groups(pairs: np.ndarray, size: int) -> np.ndarray:
    """(size,) the group of each record, numbered in the order of first records; ``pairs`` are of record and image."""
    _, images = np.unique(pairs[:, 1], return_inverse=True)
    nodes = size + len(pairs)
    edges = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], size + images)), shape=(nodes, nodes))
    _, labels = connected_components(edges, directed=False)
    _, first, groups = np.unique(labels[:size], return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[groups]


def _chosen(groups: np.ndarray, kinds: np.ndarray, part: tuple[float, float]) -> np.ndarray:
    """(records,) whether each record is in ``part``; those that cannot be parsed are in none."""
    count = int(groups.max(initial=-1)) + 1
    drawn = kinds == KINDS.index("t2i")
    has = [np.bincount(groups[of & (kinds != BAD)], minlength=count) for of in (~drawn, drawn)]
    inside = np.zeros(count, bool)
    for stratum in ((has[0] > 0) & (has[1] == 0), (has[0] == 0) & (has[1] > 0), (has[0] > 0) & (has[1] > 0)):
        members = np.flatnonzero(stratum)
        if not len(members):
            continue
        rank = permute(np.arange(len(members)), len(members), (_KEY,))
        ends = np.cumsum((has[0] + has[1])[members[np.argsort(rank)]])[rank]
        first, last = (int(end * ends.max()) for end in part)
        inside[members] = (first < ends) & (ends <= last)
    return inside[groups] & (kinds != BAD)


def _images(source: Source, reader: Reader, cache: Path | None) -> np.ndarray:
    """(images, 2) int64: record, and 63 bits that stand for an image of it."""
    if reader.path.is_dir():
        cache = None  # its time says nothing about the files in it
    what = f"images {type(reader).__name__} {source.data_type} {source.root} {sorted(source.columns.items())}"
    return cached(reader.path, what, cache, lambda: stacked(_read(reader), 2))


def _read(reader: Reader) -> Iterator[tuple[int, ...]]:
    for number in np.flatnonzero(reader.kinds != BAD).tolist():
        try:
            record = reader.record(number)
        except BadRecordError:  # it changed since it was indexed; training reports it
            continue
        for picture in (picture for turn in record.turns for picture in turn.pictures):
            yield number, int.from_bytes(hashlib.blake2b(_name(picture), digest_size=8).digest()) >> 1


def _name(picture: StoredImage) -> bytes:
    if isinstance(picture, ImageBytes | EncodedSource):  # a cache has a copy of a source image for each record
        return picture.read()
    if isinstance(picture, ImageFile):
        return f"{picture.path.absolute()}\0{picture.offset}\0{picture.size}".encode()
    return f"{picture.shard.absolute()}\0{picture.row}".encode()
