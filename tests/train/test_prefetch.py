"""The next batch in a thread: one ahead, in order, with errors where they belong, and the run stays the same bit for bit."""

from __future__ import annotations

import threading
import time

import pytest

from unidecouple.train.prefetch import Prefetch


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("start", [0, 3])
def test_batches_in_order_each_built_once(workers: int, start: int) -> None:
    built: list[int] = []

    def build(step: int) -> int:
        built.append(step)
        return step * step

    with Prefetch(build, 6, workers) as batches:
        assert [batches.take(step) for step in range(start, 6)] == [step * step for step in range(start, 6)]
    assert built == list(range(start, 6))


def test_the_next_is_built_while_this_one_is_used() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def build(step: int) -> int:
        if step:
            begun.set()
            assert go_on.wait(30)
        return step

    with Prefetch(build, 2, 1) as batches:
        assert batches.take(0) == 0
        assert begun.wait(30), "nobody builds the second"
        go_on.set()
        assert batches.take(1) == 1


def test_settled_means_at_rest() -> None:
    done: list[int] = []

    def build(step: int) -> int:
        time.sleep(0.05 * step)
        done.append(step)
        return step

    with Prefetch(build, 9, 1) as batches:
        batches.take(0)
        batches.wait_until_idle()
        assert done == [0, 1]
        assert batches.take(1) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_is_raised_when_its_step_is_taken(workers: int) -> None:
    def build(step: int) -> int:
        if step == 2:
            raise ValueError("record 2 is bad")
        return step

    with Prefetch(build, 9, workers) as batches:
        for step in range(2):
            batches.take(step)
            batches.wait_until_idle()
        with pytest.raises(ValueError, match="record 2 is bad"):
            batches.take(2)


def test_an_interrupted_step_leaves_no_thread() -> None:
    def interrupted() -> None:
        with Prefetch(lambda step: time.sleep(0.01), 9, 1) as batches:
            batches.take(0)
            assert threads()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert threads() == []
