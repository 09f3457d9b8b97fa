"""What waits is taken in as room comes, and everything is given with its own number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from unidecouple.generate.generator import generate_all


@dataclass
class Job:
    left: int


@dataclass
class Shop:
    """Works on at most two jobs at a time; a job takes as many steps as it says. ``log`` has the jobs at work at each step."""

    jobs: list[Job] = field(default_factory=list)
    log: list[int] = field(default_factory=list)

    @property
    def free_slots(self) -> int:
        return 2 - len(self.jobs)

    def add(self, wanted: Sequence[int]) -> list[Job]:
        assert 0 < len(wanted) <= self.free_slots
        new = [Job(steps) for steps in wanted]
        self.jobs += new
        return new

    def step(self) -> list[Job]:
        self.log.append(len(self.jobs))
        for job in self.jobs:
            job.left -= 1
        done = [job for job in self.jobs if not job.left]
        self.jobs = [job for job in self.jobs if job.left]
        return done


@pytest.mark.parametrize(
    ("wanted", "order", "log"),
    [([3, 1, 1, 2], [1, 2, 0, 3], [2, 2, 2, 1]), ([1, 1, 1], [0, 1, 2], [2, 1]), ([], [], [])],
)
def test_each_joins_as_another_leaves(wanted: list[int], order: list[int], log: list[int]) -> None:
    shop = Shop()
    assert [number for number, _ in generate_all(shop, wanted)] == order
    assert shop.log == log


def test_what_is_done_is_given_before_others_come() -> None:
    """An image's tokens are its own until the next ``add`` alone."""
    shop = Shop()
    for _, job in generate_all(shop, [1, 2, 1, 1]):
        assert job not in shop.jobs
        assert len(shop.jobs) < 2
