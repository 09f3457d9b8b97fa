"""One thread that owns the model and gives every answer and every picture a token in turn."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from unidecouple.batch import Task
from unidecouple.generate.answering import Answer, Answering
from unidecouple.generate.drawing import Drawing, Picture
from unidecouple.generate.engine import Engine
from unidecouple.serve.task_queue import FaultError, Job, TaskQueue

_LOG = logging.getLogger(__name__)

_STEP_SECONDS = 5.0
"""That a closing scheduler waits for the model's last step."""

Ended = Callable[[Task, str, float], None]
"""Told of each job's end: its task, "done", "failed" or "cancelled", and its seconds since it came."""


class ClosedError(Exception):
    """The scheduler takes no more jobs: it shuts down, or is broken."""


@dataclass(frozen=True)
class Answered:
    """A finished answer: its tokens without the EOS, and whether the EOS or a stop string came."""

    tokens: tuple[int, ...]
    ended: bool


@dataclass(frozen=True)
class Drawn:
    """A finished picture, and the tokens that it was made of."""

    picture: Image.Image
    tokens: tuple[int, ...]


class Scheduler:
    """Continuous batching of both tasks on one engine.

    Between two steps jobs join and leave; then every answer gets one token, then every picture, so that neither task starves. A
    fault ends the running jobs of its task, whose queue begins anew; if that fails too, nothing is accepted any more (``broken``).

    Args:
        engine: of one or both tasks; it must not be used elsewhere from now on.
        queue: most jobs of a task that wait.
        ended: told of each job's end, on the worker's thread.
    """

    def __init__(self, engine: Engine, queue: int = 64, ended: Ended = lambda task, how, seconds: None) -> None:
        self.engine = engine
        self.task_queues: dict[Task, TaskQueue[Any, Any]] = {}
        if engine.task in (None, Task.MMU):
            self.task_queues[Task.MMU] = _answers(engine, queue, lambda how, seconds: ended(Task.MMU, how, seconds))
        if engine.task in (None, Task.T2I):
            self.task_queues[Task.T2I] = _pictures(engine, queue, lambda how, seconds: ended(Task.T2I, how, seconds))
        self.broken: Exception | None = None
        self._wake = threading.Condition()
        self._closing, self._deadline = False, float("inf")
        self._thread = threading.Thread(target=self._run, name="unidecouple-worker", daemon=True)
        self._thread.start()

    def submit(self, task: Task, jobs: Sequence[Job[Any]]) -> None:
        """Let ``jobs`` wait for their turn, all or none.

        Raises:
            QueueFullError: too many of this task wait already.
            ClosedError: nothing is taken any more.
        """
        with self._wake:
            if self.broken is not None:
                raise ClosedError("the model failed and cannot go on; restart the server")
            if self._closing:
                raise ClosedError("the server is shutting down")
            self.task_queues[task].submit(jobs)
            self._wake.notify()

    def refuse(self) -> None:
        """Take no more jobs; those that wait or run go on."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    def close(self, seconds: float = 30.0) -> None:
        """Take no more jobs, finish those there are within ``seconds``, fail the rest, and end the thread.

        A step of the model that takes longer is left to itself.
        """
        with self._wake:
            self._closing, self._deadline = True, time.monotonic() + seconds
            self._wake.notify()
        self._thread.join(seconds + _STEP_SECONDS)

    @property
    def alive(self) -> bool:
        """Whether jobs can be done."""
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
            task_queue.fail(ClosedError("the server is shutting down"), everyone=True)

    def _turn(self, task: Task) -> None:
        task_queue = self.task_queues[task]
        try:
            task_queue.turn()
        except Exception as error:  # noqa: BLE001 -- whatever it is, only the jobs at work end with it
            _LOG.exception("%s failed; %d jobs end with it", task.key, task_queue.running)
            task_queue.fail(FaultError(error))
            try:
                task_queue.rebuild()
            except Exception as second:  # noqa: BLE001 -- and here the server says that it is broken
                _LOG.exception("%s cannot begin anew", task.key)
                with self._wake:
                    self.broken = second
                for one in self.task_queues.values():
                    one.fail(FaultError(second), everyone=True)


def _answers(engine: Engine, queue: int, ended: Callable[[str, float], None]) -> TaskQueue[Any, Answer]:
    worker = engine.answering

    def finish(answers: Sequence[Answer]) -> list[Answered]:
        return [Answered(tuple(answer.tokens), answer.ended) for answer in answers]

    def anew() -> Answering:
        return Answering(worker.model, engine.builder, engine.most, engine.length, engine.recorder)

    return TaskQueue(worker, anew, finish, queue, ended)


def _pictures(engine: Engine, queue: int, ended: Callable[[str, float], None]) -> TaskQueue[Any, Picture]:
    worker = engine.drawing

    def finish(pictures: Sequence[Picture]) -> list[Drawn]:
        drawing = task_queue.worker
        assert isinstance(drawing, Drawing)
        tokens = torch.stack([drawing.tokens(picture) for picture in pictures])
        return [Drawn(picture, tuple(row)) for picture, row in zip(engine.render(tokens), tokens.tolist(), strict=True)]

    def anew() -> Drawing:
        return Drawing(worker.model, engine.builder, engine.most, engine.prompt_length, engine.recorder)

    task_queue: TaskQueue[Any, Picture] = TaskQueue(worker, anew, finish, queue, ended)
    return task_queue
