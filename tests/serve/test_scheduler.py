"""Task queues and the worker's thread: who joins when, what a fault or a full queue does, and that nothing hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest
import torch

from unidecouple.batch import Task
from unidecouple.generate.engine import Engine
from unidecouple.generate.jobs import AnswerJob, ImageJob
from unidecouple.generate.sampling import SamplingParams
from unidecouple.serve.scheduler import ClosedError, Scheduler
from unidecouple.serve.task_queue import FaultError, QueuedJob, QueueFullError, TaskQueue


class Counting:
    """Counts each work down to zero; two at a time."""

    def __init__(self) -> None:
        self.making: list[list[int]] = []

    @property
    def free_slots(self) -> int:
        return 2 - len(self.making)

    def add(self, works: Any) -> list[list[int]]:
        if -1 in works:
            raise RuntimeError("cannot count that")
        new = [[work] for work in works]
        self.making += new
        return new

    def step(self) -> list[list[int]]:
        for one in self.making:
            one[0] -= 1
        done = [one for one in self.making if one[0] == 0]
        self.making = [one for one in self.making if one[0] > 0]
        return done

    def renew(self) -> Counting:
        return Counting()

    def remove(self, making: list[int]) -> None:
        self.making = [one for one in self.making if one is not making]


@pytest.fixture
def ends() -> list[str]:
    return []


@pytest.fixture
def task_queue(ends: list[str]) -> TaskQueue[int, list[int]]:
    return TaskQueue(Counting(), lambda done: ["counted"] * len(done), 4, lambda how, seconds: ends.append(how))


def test_jobs_join_as_others_leave(task_queue: TaskQueue[int, list[int]]) -> None:
    jobs = [QueuedJob(steps) for steps in (3, 1, 1, 2)]
    task_queue.submit(jobs)
    done = []
    for _ in range(4):
        task_queue.turn()
        done.append([job.future.done() for job in jobs])
    assert done == [[False, True, False, False], [False, True, True, False], [True, True, True, False], [True] * 4]
    assert task_queue.running == task_queue.waiting == 0


def test_a_full_queue_takes_all_or_none(task_queue: TaskQueue[int, list[int]]) -> None:
    task_queue.submit([QueuedJob(1)] * 3)
    with pytest.raises(QueueFullError) as refused:
        task_queue.submit([QueuedJob(1), QueuedJob(1)])
    assert 1 <= refused.value.seconds <= 60
    assert task_queue.waiting == 3
    task_queue.submit([QueuedJob(1)])


def test_the_time_to_try_again_counts_running_and_not_waiting(
    task_queue: TaskQueue[int, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    task_queue.submit([QueuedJob(2)])  # waits 100 s, runs 10 s: the mean goes from 0.1 to 0.1 + 0.1 * 9.9 = 1.09 s
    for now[0] in (100.0, 110.0):
        task_queue.turn()
    task_queue.submit([QueuedJob(1)] * 4)
    with pytest.raises(QueueFullError) as refused:
        task_queue.submit([QueuedJob(1)])
    assert refused.value.seconds == 2  # four jobs in two slots


def test_a_job_given_up_leaves_wherever_it_is(task_queue: TaskQueue[int, list[int]], ends: list[str]) -> None:
    jobs = [QueuedJob(9) for _ in range(4)]
    task_queue.submit(jobs)
    task_queue.turn()
    jobs[0].future.cancel()
    jobs[3].future.cancel()
    task_queue.turn()
    assert (task_queue.running, task_queue.waiting) == (2, 0)
    assert ends == ["cancelled"] * 2


def test_a_fault_ends_what_runs_and_no_more(task_queue: TaskQueue[int, list[int]], ends: list[str]) -> None:
    running, waiting = QueuedJob(5), [QueuedJob(-1), QueuedJob(1)]
    task_queue.submit([running, *waiting])
    with pytest.raises(RuntimeError, match="cannot count"):
        task_queue.turn()
    with pytest.raises(FaultError):
        waiting[0].future.result(0)
    task_queue.fail(FaultError(RuntimeError()))
    task_queue.rebuild()
    assert not waiting[1].future.done()
    task_queue.turn()
    assert waiting[1].future.result(0) == "counted"
    assert ends == ["failed", "failed", "done"]


class Gated:
    """A model call that waits until it is let through, or fails."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call, self.open, self.error = call, threading.Event(), None
        self.open.set()
        self.began = threading.Event()

    def __call__(self, *arguments: Any) -> Any:
        self.began.set()
        assert self.open.wait(20)
        if self.error is not None:
            raise self.error
        return self.call(*arguments)


@pytest.fixture
def engine() -> Engine:
    return Engine.load("unified", max_batch_size=3)


@pytest.fixture
def scheduler(engine: Engine) -> Iterator[Scheduler]:
    scheduler = Scheduler(engine, max_waiting=8)
    yield scheduler
    scheduler.close(0)


def question(engine: Engine, most: int = 8) -> AnswerJob:
    return AnswerJob(engine.builder.conversation([("user", ["What is this?"])], Task.MMU).input_ids, (), most)


def test_both_tasks_give_what_the_engine_gives(scheduler: Scheduler, engine: Engine) -> None:
    orders = [
        QueuedJob(ImageJob.of(engine.builder, "a photo of a red cow", (7, 0, i), SamplingParams(guidance_scale=3.0)))
        for i in range(5)
    ]
    questions = [QueuedJob(question(engine)) for _ in range(5)]
    scheduler.submit(Task.T2I, orders)
    scheduler.submit(Task.MMU, questions)
    drawn = [job.future.result(20) for job in orders]
    answers = {job.future.result(20).tokens for job in questions}
    assert len(answers) == 1
    alone = Engine.load("unified").generate_images(["a photo of a red cow"], 5, 7, SamplingParams(guidance_scale=3.0))[0]
    assert all(one.image.tobytes() == other.tobytes() for one, other in zip(drawn, alone, strict=True))


def test_a_short_answer_does_not_wait_for_pictures(scheduler: Scheduler, engine: Engine) -> None:
    gate = Gated(scheduler.task_queues[Task.T2I].generator.step)
    scheduler.task_queues[Task.T2I].generator.step = gate  # type: ignore[method-assign]
    drawing = QueuedJob(ImageJob.of(engine.builder, "a cow", (0,)))
    scheduler.submit(Task.T2I, [drawing])
    answer = QueuedJob(question(engine, 1))
    scheduler.submit(Task.MMU, [answer])
    assert len(answer.future.result(20).tokens) <= 1
    assert not drawing.future.done() or drawing.future.result(0) is not None
    drawing.future.result(20)


def test_a_fault_of_the_model_ends_its_jobs_and_the_worker_goes_on(scheduler: Scheduler, engine: Engine) -> None:
    task_queue = scheduler.task_queues[Task.T2I]
    gate = Gated(task_queue.generator.step)
    gate.error = RuntimeError("injected")
    task_queue.generator.step = gate  # type: ignore[method-assign]
    failed = [QueuedJob(ImageJob.of(engine.builder, "a cow", (i,))) for i in range(2)]
    answer = QueuedJob(question(engine))
    scheduler.submit(Task.T2I, failed)
    scheduler.submit(Task.MMU, [answer])
    for job in failed:
        with pytest.raises(FaultError, match="RuntimeError"):
            job.future.result(20)
    assert answer.future.result(20) is not None
    again = QueuedJob(ImageJob.of(engine.builder, "a photo of a red cow", (7, 0, 0), SamplingParams(guidance_scale=3.0)))
    scheduler.submit(Task.T2I, [again])
    alone = Engine.load("unified").generate_images(["a photo of a red cow"], 1, 7, SamplingParams(guidance_scale=3.0))[0][0]
    assert again.future.result(20).image.tobytes() == alone.tobytes()
    assert scheduler.alive


def test_a_model_that_cannot_go_on_is_said_to_be_broken(
    scheduler: Scheduler, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never() -> Any:
        raise torch.OutOfMemoryError("injected")

    task_queue = scheduler.task_queues[Task.T2I]
    gate = Gated(task_queue.generator.step)
    gate.error = RuntimeError("injected")
    task_queue.generator.step = gate  # type: ignore[method-assign]
    monkeypatch.setattr(task_queue.generator, "renew", never)
    jobs = [QueuedJob(ImageJob.of(engine.builder, "a cow", (i,))) for i in range(5)]
    scheduler.submit(Task.T2I, jobs)
    for job in jobs:
        with pytest.raises(FaultError):
            job.future.result(20)
    assert not scheduler.alive
    with pytest.raises(ClosedError, match="restart"):
        scheduler.submit(Task.MMU, [])


@pytest.mark.parametrize("seconds", [20.0, 0.0])
def test_closing_finishes_what_is_there_within_its_time(engine: Engine, seconds: float) -> None:
    scheduler = Scheduler(engine, max_waiting=8)
    task_queue = scheduler.task_queues[Task.T2I]
    gate = Gated(task_queue.generator.step)
    gate.open.clear()
    task_queue.generator.step = gate  # type: ignore[method-assign]
    jobs = [QueuedJob(ImageJob.of(engine.builder, "a cow", (i,))) for i in range(5)]  # two more than there is room for
    scheduler.submit(Task.T2I, jobs)
    assert gate.began.wait(20)
    scheduler.refuse()
    with pytest.raises(ClosedError, match="shutting down"):
        scheduler.submit(Task.T2I, [QueuedJob(ImageJob.of(engine.builder, "a cow", (0,)))])
    closing = threading.Thread(target=scheduler.close, args=(seconds,))
    closing.start()
    while scheduler._deadline == float("inf"):
        pass
    gate.open.set()
    closing.join(20)
    assert not closing.is_alive()
    assert all(job.future.done() for job in jobs)
    assert [job.future.exception() is None for job in jobs] == [seconds > 0] * 5


def test_a_job_given_up_is_told_so(scheduler: Scheduler, engine: Engine) -> None:
    job = QueuedJob(ImageJob.of(engine.builder, "a cow", (0,)))
    assert job.future.cancel()
    scheduler.submit(Task.T2I, [job])
    with pytest.raises(CancelledError):
        job.future.result(20)
