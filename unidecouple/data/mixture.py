"""The mixture of sources: which record a draw is, as a function of the seed and the draw's number alone.

Nothing is read or remembered on the way there, so a resumed run goes on exactly, without reading again what it has seen.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from unidecouple.data.permutation import permute

CYCLE: Final = 1 << 14
"""Draws in which every source has its exact share: shares hold to one in 16,384."""


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
