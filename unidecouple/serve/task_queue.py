"""The queue of one task: jobs wait, run together, and end with a result, with an error, or cancelled."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from unidecouple.generate.generator import Generator, Handle

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
    """One answer or image.

    Attributes:
        work: the ``AnswerJob`` or ``ImageJob`` to generate.
        future: its result. Cancelling the future cancels the job before the next step.
        on_progress: called with the generator's handle after each step, on the worker's thread.
        submitted_at: seconds of ``time.monotonic``.
        started_at: the same, once the generator has the job.
    """

    work: Work
    on_progress: Callable[[Any], None] | None = None
    future: Future[Any] = field(default_factory=Future)
    submitted_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None


class TaskQueue(Generic[Work, Handle]):
    """Queue of the jobs of one task. Any thread may call ``submit``; only the worker calls ``turn``, ``fail`` and ``rebuild``.

    Args:
        generator: generates answers or images.
        finish: turns handles of finished jobs into results, on the worker's thread.
        max_waiting: largest number of waiting jobs.
        on_end: called with how each job ended ("done", "failed" or "cancelled") and the seconds since it was submitted.
    """

    def __init__(
        self,
        generator: Generator[Work, Handle],
        finish: Callable[[Sequence[Handle]], Sequence[object]],
        max_waiting: int,
        on_end: Callable[[str, float], None],
    ) -> None:
        self.generator, self._finish, self.max_waiting, self._on_end = generator, finish, max_waiting, on_end
        self._lock = threading.Lock()
        self._waiting: deque[QueuedJob[Work]] = deque()
        self._running: list[tuple[QueuedJob[Work], Handle]] = []
        self._capacity, self._mean_run_seconds = generator.free_slots, 0.1

    @property
    def waiting(self) -> int:
        """Jobs that wait for a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs that are being generated."""
        return len(self._running)

    def submit(self, jobs: Sequence[QueuedJob[Work]]) -> None:
        """Add ``jobs`` to the queue, all or none.

        Raises:
            QueueFullError: too many wait already.
        """
        with self._lock:
            if len(self._waiting) + len(jobs) > self.max_waiting:
                rounds = math.ceil(len(self._waiting) / self._capacity)
                raise QueueFullError(max(1, min(60, round(rounds * self._mean_run_seconds))))
            self._waiting.extend(jobs)

    def turn(self) -> None:
        """Drop cancelled jobs, start waiting ones while slots are free, and generate one token of each running job."""
        self._drop()
        self._begin()
        if not self._running:
            return
        done = self.generator.step()
        finished = [(job, handle) for job, handle in self._running if any(handle is one for one in done)]
        for job, handle in self._running:
            if job.on_progress is not None:
                job.on_progress(handle)
        if finished:
            results = self._finish([handle for _, handle in finished])
            self._running = [pair for pair in self._running if all(pair[0] is not job for job, _ in finished)]
            for (job, _), result in zip(finished, results, strict=True):
                self._end(job, result)

    def fail(self, error: Exception, include_waiting: bool = False) -> None:
        """End running jobs with ``error``; with ``include_waiting`` waiting jobs, too."""
        jobs, self._running = [job for job, _ in self._running], []
        if include_waiting:
            with self._lock:
                jobs += self._waiting
                self._waiting.clear()
        for job in jobs:
            self._end(job, error)

    def rebuild(self) -> None:
        """Replace the generator by an empty one after a fault."""
        self.generator = self.generator.renew()

    def _drop(self) -> None:
        for job, handle in [pair for pair in self._running if pair[0].future.cancelled()]:
            self._running = [pair for pair in self._running if pair[0] is not job]
            self.generator.remove(handle)
            self._on_end("cancelled", time.monotonic() - job.submitted_at)
        with self._lock:
            gone = [job for job in self._waiting if job.future.cancelled()]
            if gone:
                self._waiting = deque(job for job in self._waiting if not job.future.cancelled())
        for job in gone:
            self._on_end("cancelled", time.monotonic() - job.submitted_at)

    def _begin(self) -> None:
        with self._lock:
            coming = [self._waiting.popleft() for _ in range(min(self.generator.free_slots, len(self._waiting)))]
        if not coming:
            return
        try:
            made = self.generator.add([job.work for job in coming])
        except Exception as error:
            for job in coming:  # those that run are failed by whoever catches it
                self._end(job, FaultError(error))
            raise
        now = time.monotonic()
        for job in coming:
            job.started_at = now
        self._running += zip(coming, made, strict=True)

    def _end(self, job: QueuedJob[Work], result: object) -> None:
        seconds = time.monotonic() - job.submitted_at
        try:
            if isinstance(result, Exception):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)
        except InvalidStateError:  # cancelled at this moment
            self._on_end("cancelled", seconds)
            return
        if job.started_at is not None:
            self._mean_run_seconds += 0.1 * (time.monotonic() - job.started_at - self._mean_run_seconds)
        self._on_end("failed" if isinstance(result, Exception) else "done", seconds)
