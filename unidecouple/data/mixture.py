"""Sources of data and their mixture: which record a draw is, as a function of the seed and the draw's number alone.

Nothing is read or remembered on the way there, so a resumed run goes on exactly, without reading again what it has seen.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from unidecouple.bounds import at_least, between
from unidecouple.data.permutation import permute

CYCLE: Final = 1 << 14
"""Draws in which every source has its exact share: shares hold to one in 16,384."""


@dataclass(frozen=True)
class Source:
    """One source of data.

    Attributes:
        path: a file, a folder, or a pattern with ``*`` (see ``formats/detect.py``).
        weight: its share of the draws, among all sources that have the task; None (for all or for none) makes the share its
            number of samples times ``repeats``.
        max_samples: use that many at most, chosen by the seed; the same ones every epoch.
        repeats: how often it comes in one pass over all sources.
        data_type: forces a format.
        root: where relative names of pictures start; by default the file's own folder.
    """

    path: Path
    weight: float | None = None
    max_samples: int | None = None
    repeats: float = 1.0
    data_type: str | None = None
    root: Path | None = None

    def __post_init__(self) -> None:
        for name, value in (("weight", self.weight), ("max_samples", self.max_samples), ("repeats", self.repeats)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}={value} of {self.path} must be above 0 and finite; leave the source out instead")
        if self.weight is not None and self.repeats != 1.0:
            raise ValueError(f"{self.path} has weight={self.weight} and repeats={self.repeats}: give one of them")


@dataclass(frozen=True)
class Files:
    """Users' own data of a run.

    Attributes:
        sources: where it lies.
        validation: held-out sources that a run is scored on.
        mmu_batch_size: samples a step that are understood, texts among them, by the sources' shares; 0 is generation only.
        t2i_batch_size: pictures with prompts a step; 0 is understanding only.
        max_length: tokens of the longest sequence, or of a row if ``pack``; longer samples count as bad, and so do those that are
            longer than the model takes, without ``pack``. Nothing is truncated.
        pack: several sequences a row, all tasks together, instead of one padded batch a task.
        cond_dropout_prob: share of prompts hidden, for classifier-free guidance.
        max_bad_ratio: share of bad records (unreadable, missing, too long) above which the run fails.
    """

    sources: tuple[Source, ...]
    validation: tuple[Source, ...] = ()
    mmu_batch_size: int = 32
    t2i_batch_size: int = 32
    max_length: int = 2048
    pack: bool = False
    cond_dropout_prob: float = 0.1
    max_bad_ratio: float = 0.01

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources is empty: name at least one path")
        if self.mmu_batch_size < 0 or self.t2i_batch_size < 0 or not self.mmu_batch_size + self.t2i_batch_size:
            raise ValueError(f"mmu_batch_size={self.mmu_batch_size}, t2i_batch_size={self.t2i_batch_size}: one must be above 0")
        at_least(1, self, "max_length")
        between(0, 1, self, "cond_dropout_prob", "max_bad_ratio")
        given = [source.weight is not None for source in self.sources]
        if any(given) and not all(given):
            missing = next(source.path for source in self.sources if source.weight is None)
            raise ValueError(f"{missing} has no weight, but other sources have: give all of them one, or none")

    @property
    def most_parts(self) -> int:
        """Into how many parts a step can be cut such that each holds every task."""
        return min(size for size in (self.mmu_batch_size, self.t2i_batch_size) if size)


@dataclass(frozen=True)
class Pool:
    """The records of one source that one stream draws from: ``size`` of them, ``used`` after the cap, at ``share`` of the draws."""

    source: int
    size: int
    used: int
    share: float


class Stream:
    """An endless sequence of draws from several pools.

    Pools alternate in cycles of ``CYCLE`` draws, each with its exact share, in an order shuffled anew each cycle. Inside a pool
    every record comes once an epoch, in an order shuffled anew each epoch.
    """

    def __init__(self, pools: Sequence[Pool], key: Sequence[int]) -> None:
        self.pools, self._key = tuple(pools), tuple(key)
        self._quotas = quotas([pool.share for pool in pools])
        self._pattern = functools.lru_cache(4)(self._shuffled)

    def draw(self, number: int, skip: int = 0) -> tuple[int, int]:
        """(pool, record in the pool) of draw ``number``; with ``skip`` the record so many places on, for one that is bad."""
        cycle, place = divmod(number, CYCLE)
        pattern = self._pattern(cycle)
        chosen = int(pattern[place])
        earlier = cycle * self._quotas[chosen] + int((pattern[:place] == chosen).sum())
        pool = self.pools[chosen]
        epoch, rank = divmod(earlier, pool.used)
        position = permute((rank + skip) % pool.used, pool.used, (*self._key, pool.source, 1, epoch))
        if pool.used < pool.size:
            position = permute(position, pool.size, (*self._key, pool.source, 2))
        return chosen, int(position)

    def _shuffled(self, cycle: int) -> np.ndarray:
        """(CYCLE,) the pool of each draw of the cycle."""
        ordered = np.repeat(np.arange(len(self.pools)), self._quotas)
        return ordered[permute(np.arange(CYCLE), CYCLE, (*self._key, 0, cycle))]


def quotas(shares: Sequence[float]) -> list[int]:
    """Draws of each pool in a cycle: ``shares`` by largest remainders, at least one each, ``CYCLE`` in all."""
    exact = np.asarray(shares, float) / sum(shares) * CYCLE
    whole = np.maximum(1, np.floor(exact)).astype(int)
    order = np.argsort(-(exact - whole), kind="stable")
    while whole.sum() < CYCLE:
        whole[order[: CYCLE - whole.sum()]] += 1
    while whole.sum() > CYCLE:  # the least shares were raised to one: the largest gives way
        whole[int(whole.argmax())] -= 1
    return whole.tolist()
