"""Divide records into parts by their images: records that share an image are on one side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from unidecouple.data.formats.reader import BAD, Reader, cached, stacked
from unidecouple.data.formats.record import KINDS, BadRecordError, EncodedSource, ImageBytes, ImageFile, StoredImage
from unidecouple.data.permutation import permute
from unidecouple.data.settings import Source

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
