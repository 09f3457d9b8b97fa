"""Draws are a function of their number; shares, caps and repeats hold exactly; every record comes once an epoch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unidecouple.data.mixture import CYCLE, SourcePool, Stream, quotas
from unidecouple.data.settings import Files, Source


@pytest.mark.slow
def test_shares_hold_in_every_cycle() -> None:
    stream = Stream([SourcePool(0, 50, 50, 3.0), SourcePool(2, 7, 7, 1.0)], (5, 0))
    counts = Counter(stream.draw(4 * CYCLE + number)[0] for number in range(CYCLE))
    assert counts == {0: CYCLE * 3 // 4, 1: CYCLE // 4}


def test_an_epoch_has_every_record_once_in_an_order_of_its_own() -> None:
    stream = Stream([SourcePool(0, 12, 12, 1.0)], (0, 0))
    epochs = [[stream.draw(epoch * 12 + rank)[1] for rank in range(12)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_two_sources_each_have_their_epochs() -> None:
    """Through cycles and epochs: the records of one source, in the order they are drawn, fall into whole epochs."""
    stream = Stream([SourcePool(0, 30, 30, 2.0), SourcePool(1, 11, 11, 1.0)], (3, 1))
    drawn: dict[int, list[int]] = {0: [], 1: []}
    ended = quotas([2.0, 1.0])
    for number in range(CYCLE - 200, CYCLE + 200):
        pool, record = stream.draw(number)
        drawn[pool].append(record)
        ended[pool] -= number < CYCLE
    for pool, size in ((0, 30), (1, 11)):
        first = -ended[pool] % size  # the draws of the pool before these
        whole = drawn[pool][first : first + size]
        assert sorted(whole) == list(range(size))


def test_a_cap_keeps_the_same_records() -> None:
    stream = Stream([SourcePool(0, 1000, 20, 1.0)], (0, 0))
    epochs = [{stream.draw(epoch * 20 + rank)[1] for rank in range(20)} for epoch in range(3)]
    assert epochs[0] == epochs[1] == epochs[2]
    assert len(epochs[0]) == 20
    assert max(epochs[0]) > 500  # not the first ones
    assert {Stream([SourcePool(0, 1000, 20, 1.0)], (1, 0)).draw(rank)[1] for rank in range(20)} != epochs[0]


def test_draws_need_no_earlier_ones() -> None:
    pools = [SourcePool(0, 100, 100, 1.0), SourcePool(1, 9, 9, 1.0)]
    in_order = [Stream(pools, (0, 0)).draw(number) for number in range(300)]
    stream = Stream(pools, (0, 0))
    for number in np.random.default_rng(0).permutation(300).tolist():
        assert stream.draw(number) == in_order[number]
    far = 10**9 * CYCLE + 5
    assert Stream(pools, (0, 0)).draw(far) == stream.draw(far)


def test_a_bad_record_gives_way_to_others_of_its_epoch() -> None:
    stream = Stream([SourcePool(0, 8, 8, 1.0)], (0, 0))
    assert sorted(stream.draw(3, skip)[1] for skip in range(8)) == list(range(8))
    assert stream.draw(3, 1) == stream.draw(4)


@given(shares=st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=20))
def test_quotas(shares: list[float]) -> None:
    found = quotas(shares)
    assert sum(found) == CYCLE
    assert min(found) >= 1
    exact = [share / sum(shares) * CYCLE for share in shares]
    assert all(abs(a - b) < 1 + len(shares) for a, b in zip(found, exact, strict=True))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Source(Path("a"), weight=0.0), "weight=0.0 of a must be above 0"),
        (lambda: Source(Path("a"), max_samples=-1), "max_samples=-1"),
        (lambda: Source(Path("a"), weight=1.0, repeats=2.0), "give one of them"),
        (lambda: Files(()), "sources is empty"),
        (lambda: Files((Source(Path("a")),), mmu_batch_size=0, t2i_batch_size=0), "one must be above 0"),
        (lambda: Files((Source(Path("a")),), cond_dropout_prob=10), "cond_dropout_prob=10 must be from 0 to 1"),
        (lambda: Files((Source(Path("a")),), max_bad_ratio=-0.1), "max_bad_ratio=-0.1 must be from 0 to 1"),
        (lambda: Files((Source(Path("a")),), max_length=0), "max_length=0 must be at least 1"),
        (lambda: Files((Source(Path("a"), weight=1.0), Source(Path("b")))), "b has no weight, but other sources have"),
    ],
)
def test_mistakes_are_told(make: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make()
