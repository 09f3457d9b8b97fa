"""Shuffles that keep no list: a permutation of 0 … n-1 as a function of a key, computed where it is asked for.

A Feistel network is a bijection of its whole domain whatever its round function is (Luby and Rackoff, 1988). The domain is the
least power of four that holds n; results outside 0 … n-1 are sent through again until they fall inside ("cycle walking"), which
keeps it a bijection of 0 … n-1. The domain is less than 4 n, so a step is walked less than four times on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

_ROUNDS: Final = 6
_MULTIPLIERS: Final = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))
"""Of MurmurHash3's 64-bit finaliser, which spreads every bit of its input over its output."""


def permute(index: np.ndarray | int, size: int, key: Sequence[int]) -> np.ndarray:
    """Where the permutation of 0 … ``size`` - 1 that ``key`` names sends each ``index``: int64, of the shape of ``index``.

    Args:
        index: any shape, each entry in 0 … ``size`` - 1.
        size: up to 2 ** 62.
        key: non-negative integers, such as (seed, source, epoch).

    Raises:
        ValueError: an index lies outside.
    """
    position = np.atleast_1d(np.asarray(index, np.int64))
    if position.size and (position.min() < 0 or position.max() >= size):
        raise ValueError(f"indices {position.min()} to {position.max()} do not lie in 0 to {size - 1}")
    bits = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = np.random.SeedSequence(list(key)).generate_state(_ROUNDS, np.uint64)
    out = _feistel(position.astype(np.uint64), bits, keys)
    while (outside := out >= size).any():
        out[outside] = _feistel(out[outside], bits, keys)
    return out.astype(np.int64).reshape(np.shape(index))


def _feistel(x: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """One pass over a domain of 2 * ``bits`` bits."""
    mask = np.uint64((1 << bits) - 1)
    left, right = x >> np.uint64(bits), x & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << np.uint64(bits)) | right


def _mix(x: np.ndarray) -> np.ndarray:
    for multiplier in _MULTIPLIERS:
        x = (x ^ (x >> np.uint64(33))) * multiplier  # arrays of unsigned integers wrap around, as the hash wants
    return x ^ (x >> np.uint64(33))
