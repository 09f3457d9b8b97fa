"""The mixture of sources: the record of each sample, as a function of the seed and the sample's number alone.

There is no state, so a resumed run continues exactly, without reading earlier records again.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from unidecouple.data.permutation import permute

CYCLE: Final = 1 << 14
"""Samples per cycle, in which every source has its exact share: shares are exact to one in 16,384."""


@dataclass(frozen=True)
class SourcePool:
    """One source's records in a stream: ``size`` of them, ``used`` after the cap, with ``share`` of the samples."""

    source: int
    size: int
    used: int
    share: float


class Stream:
    """An endless sequence of samples from several pools.

    Pools alternate in cycles of ``CYCLE`` samples, each with its exact share, reshuffled each cycle. In a pool every record comes
    once per epoch, reshuffled each epoch.
    """

    def __init__(self, pools: Sequence[SourcePool], key: Sequence[int]) -> None:
        self.pools, self._key = tuple(pools), tuple(key)
        self._quotas = quotas([pool.share for pool in pools])
        self._pattern = functools.lru_cache(4)(self._shuffled)

    def draw(self, number: int, skip: int = 0) -> tuple[int, int]:
        """(pool, record in the pool) of sample ``number``; ``skip`` steps over bad records."""
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
        """(CYCLE,) the pool of each sample of the cycle."""
        ordered = np.repeat(np.arange(len(self.pools)), self._quotas)
        return ordered[permute(np.arange(CYCLE), CYCLE, (*self._key, 0, cycle))]


def quotas(shares: Sequence[float]) -> list[int]:
    """Samples of each pool per cycle: ``shares`` by largest remainders, at least one each, ``CYCLE`` in total."""
    exact = np.asarray(shares, float) / sum(shares) * CYCLE
    whole = np.maximum(1, np.floor(exact)).astype(int)
    order = np.argsort(-(exact - whole), kind="stable")
    while whole.sum() < CYCLE:
        whole[order[: CYCLE - whole.sum()]] += 1
    while whole.sum() > CYCLE:  # the least shares were raised to one: the largest gives way
        whole[int(whole.argmax())] -= 1
    return whole.tolist()
