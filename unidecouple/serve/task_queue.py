"""The queue of one task: jobs wait, run together, and end with a result, with an error, or cancelled."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from unidecouple.generate.generator import Generator, Progress

Work = TypeVar("Work")


class QueueFullError(Exception):
    """No more jobs can wait. ``seconds`` is when to try again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full; try again in {seconds} s")
        self.seconds = seconds


class FaultError(Exception):
    """The model failed while it worked on a job; the cause is what it raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"the model failed on this request ({type(cause).__name__}); see the server's log")
        self.__cause__ = cause


@dataclass(eq=False)
class QueuedJob(Generic[Work]):
    """One answer or picture.

    Attributes:
        work: what is asked for.
        future: of its result. Cancelling it cancels the job: it leaves before the next step.
        watch: called with its progress after each step, on the worker's thread.
    """

    work: Work
    watch: Callable[[Any], None] | None = None
    future: Future[Any] = field(default_factory=Future)
    came: float = field(default_factory=time.monotonic)


class TaskQueue(Generic[Work, Progress]):
    """Jobs of one task. ``submit`` is for any thread; ``turn``, ``fail`` and ``rebuild`` are for the worker's.

    Args:
        generator: of answers or images.
        finish: from what is done to results, on the worker's thread.
        max_waiting: most jobs that wait.
        ended: called with how each job ended ("done", "failed" or "cancelled") and the seconds since it came.
    """

    def __init__(
        self,
        generator: Generator[Work, Progress],
        finish: Callable[[Sequence[Progress]], Sequence[object]],
        max_waiting: int,
        ended: Callable[[str, float], None],
    ) -> None:
        self.generator, self._finish, self.max_waiting, self._ended = generator, finish, max_waiting, ended
        self._lock = threading.Lock()
        self._waiting: deque[QueuedJob[Work]] = deque()
        self._running: list[tuple[QueuedJob[Work], Progress]] = []
        self._places, self._pace = generator.room, 0.1

    @property
    def waiting(self) -> int:
        """Jobs that wait for a place."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs that are given tokens."""
        return len(self._running)

    def submit(self, jobs: Sequence[QueuedJob[Work]]) -> None:
        """Let ``jobs`` wait, all or none.

        Raises:
            QueueFullError: too many wait already.
        """
        with self._lock:
            if len(self._waiting) + len(jobs) > self.max_waiting:
                rounds = -(-len(self._waiting) // self._places)
                raise QueueFullError(max(1, min(60, round(rounds * self._pace))))
            self._waiting.extend(jobs)

    def turn(self) -> None:
        """Drop cancelled jobs, start waiting ones as far as there is room, and generate one token of each."""
        self._drop()
        self._begin()
        if not self._running:
            return
        done = self.generator.step()
        finished = [(job, progress) for job, progress in self._running if any(progress is one for one in done)]
        for job, progress in self._running:
            if job.watch is not None:
                job.watch(progress)
        if finished:
            results = self._finish([progress for _, progress in finished])
            self._running = [pair for pair in self._running if all(pair[0] is not job for job, _ in finished)]
            for (job, _), result in zip(finished, results, strict=True):
                self._end(job, result)

    def fail(self, error: Exception, everyone: bool = False) -> None:
        """End the jobs that run, and with ``everyone`` those that wait, with ``error``."""
        jobs, self._running = [job for job, _ in self._running], []
        if everyone:
            with self._lock:
                jobs += self._waiting
                self._waiting.clear()
        for job in jobs:
            self._end(job, error)

    def rebuild(self) -> None:
        """Begin with an empty generator, whatever state a fault left the last one in."""
        self.generator = self.generator.renew()

    def _drop(self) -> None:
        for job, progress in [pair for pair in self._running if pair[0].future.cancelled()]:
            self._running = [pair for pair in self._running if pair[0] is not job]
            self.generator.remove(progress)
            self._ended("cancelled", time.monotonic() - job.came)
        with self._lock:
            gone = [job for job in self._waiting if job.future.cancelled()]
            if gone:
                self._waiting = deque(job for job in self._waiting if not job.future.cancelled())
        for job in gone:
            self._ended("cancelled", time.monotonic() - job.came)

    def _begin(self) -> None:
        with self._lock:
            coming = [self._waiting.popleft() for _ in range(min(self.generator.room, len(self._waiting)))]
        if not coming:
            return
        try:
            made = self.generator.add([job.work for job in coming])
        except Exception as error:
            for job in coming:  # those that run are failed by whoever catches it
                self._end(job, FaultError(error))
            raise
        self._running += zip(coming, made, strict=True)

    def _end(self, job: QueuedJob[Work], result: object) -> None:
        seconds = time.monotonic() - job.came
        try:
            if isinstance(result, Exception):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)
        except InvalidStateError:  # cancelled at this moment
            self._ended("cancelled", seconds)
            return
        self._pace += 0.1 * (seconds - self._pace)
        self._ended("failed" if isinstance(result, Exception) else "done", seconds)
