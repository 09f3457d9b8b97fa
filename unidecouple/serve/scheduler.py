"""The thread that owns the model: each step gives every answer, then every image, one token."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image

from unidecouple.batch import Task
from unidecouple.generate.answer_generator import AnswerProgress
from unidecouple.generate.engine import Engine
from unidecouple.generate.image_generator import ImageProgress
from unidecouple.serve.limits import LAST_STEP_SECONDS
from unidecouple.serve.task_queue import FaultError, QueuedJob, TaskQueue

_LOG = logging.getLogger(__name__)

OnJobEnd = Callable[[Task, str, float], None]
"""Called at each job's end with its task, "done", "failed" or "cancelled", and the seconds since it was submitted."""


class ClosedError(Exception):
    """The scheduler accepts no more jobs: it shuts down, or is broken."""


@dataclass(frozen=True)
class FinishedAnswer:
    """A finished answer: its tokens without the EOS, and whether the EOS or a stop string came."""

    tokens: tuple[int, ...]
    stopped: bool


@dataclass(frozen=True)
class FinishedImage:
    """A finished image and its tokens."""

    image: Image.Image
    tokens: tuple[int, ...]


class Scheduler:
    """Continuous batching of both tasks on one engine.

    Between two steps jobs join and leave; then every answer gets one token, then every image, so that neither task starves. A
    fault ends the running jobs of its task, whose generator is renewed; if that fails too, no more jobs are accepted (``broken``).

    Args:
        engine: of one or both tasks; it must not be used elsewhere from now on.
        max_waiting: most jobs of a task that wait.
        on_job_end: called at each job's end, on the worker's thread.
    """

    def __init__(self, engine: Engine, max_waiting: int = 64, on_job_end: OnJobEnd = lambda task, how, seconds: None) -> None:
        self.engine = engine
        self.task_queues: dict[Task, TaskQueue[Any, Any]] = {}
        for task in engine.tasks:
            on_end = partial(on_job_end, task)
            if task is Task.MMU:
                self.task_queues[task] = TaskQueue(engine.answers, _finished_answers, max_waiting, on_end)
            else:
                self.task_queues[task] = TaskQueue(engine.images, self._finished_images, max_waiting, on_end)
        self.broken: Exception | None = None
        self._wake = threading.Condition()
        self._closing, self._deadline = False, float("inf")
        self._thread = threading.Thread(target=self._run, name="unidecouple-worker", daemon=True)
        self._thread.start()

    def submit(self, task: Task, jobs: Sequence[QueuedJob[Any]]) -> None:
        """Queue ``jobs``, all or none.

        Raises:
            QueueFullError: too many of this task wait already.
            ClosedError: no jobs are accepted any more.
        """
        with self._wake:
            if self.broken is not None:
                raise ClosedError("the model failed and cannot go on; restart the server")
            if self._closing:
                raise ClosedError("the server is shutting down")
            self.task_queues[task].submit(jobs)
            self._wake.notify()

    def refuse(self) -> None:
        """Accept no more jobs; waiting and running ones continue."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    def close(self, seconds: float = 30.0) -> None:
        """Accept no more jobs, finish the present ones within ``seconds``, fail the rest, and end the thread.

        A step of the model that takes longer is abandoned.
        """
        with self._wake:
            self._closing, self._deadline = True, time.monotonic() + seconds
            self._wake.notify()
        self._thread.join(seconds + LAST_STEP_SECONDS)

    @property
    def alive(self) -> bool:
        """Whether the scheduler works."""
        return self.broken is None and self._thread.is_alive()

    @property
    def _busy(self) -> bool:
        return any(task_queue.waiting or task_queue.running for task_queue in self.task_queues.values())

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._busy or self._deadline < float("inf"))
                if not self._busy or time.monotonic() > self._deadline:
                    break
            for task in self.task_queues:
                self._turn(task)
        for task_queue in self.task_queues.values():
            task_queue.fail(ClosedError("the server is shutting down"), include_waiting=True)

    def _turn(self, task: Task) -> None:
        task_queue = self.task_queues[task]
        try:
            task_queue.turn()
        except Exception as error:  # noqa: BLE001 -- whatever it is, only the jobs at work end with it
            _LOG.exception("%s failed; %d jobs end with it", task.key, task_queue.running)
            task_queue.fail(FaultError(error))
            try:
                task_queue.rebuild()
            except Exception as renewal_error:  # noqa: BLE001 -- then the server reports that it is broken
                _LOG.exception("%s cannot be renewed", task.key)
                with self._wake:
                    self.broken = renewal_error
                for every_queue in self.task_queues.values():
                    every_queue.fail(FaultError(renewal_error), include_waiting=True)

    def _finished_images(self, images: Sequence[ImageProgress]) -> list[FinishedImage]:
        tokens = torch.stack([image.tokens for image in images if image.tokens is not None])
        return [FinishedImage(image, tuple(row)) for image, row in zip(self.engine.render(tokens), tokens.tolist(), strict=True)]


def _finished_answers(answers: Sequence[AnswerProgress]) -> list[FinishedAnswer]:
    return [FinishedAnswer(tuple(answer.tokens), answer.stopped) for answer in answers]
