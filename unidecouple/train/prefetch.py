"""Builds the next step's batch in a thread while a step computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Calls ``build`` with 0, 1, 2, ..., one call ahead of what is taken.

    A batch is a function of its step, so nothing depends on when it is built, and a run that stops has nothing to remember.
    Readers, tokenizer and image tokenizer are shared with scoring and checkpoints, which therefore come after ``wait_until_idle``:
    the thread works while a step computes, at no other time.

    Args:
        build: makes the batch of a step (from 0).
        steps: of the run; nothing is built beyond them.
        workers: threads, 0 (batches are built when they are taken) or 1.
    """

    def __init__(self, build: Callable[[int], T], steps: int, workers: int) -> None:
        self._build, self._steps = build, steps
        self._thread = ThreadPoolExecutor(workers, "prefetch") if workers else None
        self._next: tuple[int, Future[T]] | None = None

    def take(self, step: int) -> T:
        """The batch of ``step``; starts on the one after it. Raises what building this one raised."""
        ahead, self._next = self._next, None
        batch = ahead[1].result() if ahead is not None and ahead[0] == step else self._build(step)
        if self._thread is not None and step + 1 < self._steps:
            self._next = (step + 1, self._thread.submit(self._build, step + 1))
        return batch

    def wait_until_idle(self) -> None:
        """Wait until the thread is idle. Its errors are raised when that step is taken."""
        if self._next is not None:
            wait([self._next[1]])

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
