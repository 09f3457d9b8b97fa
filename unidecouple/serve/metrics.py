"""Metrics for Prometheus."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest

from unidecouple.batch import Task
from unidecouple.serve.scheduler import Scheduler

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """Counters of one server, under ``unidecouple_…``; in a separate registry per server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.responses = Counter("unidecouple_responses", "HTTP responses.", ["path", "status"], registry=self._registry)
        self.tokens = Counter("unidecouple_tokens", "Tokens of finished answers and images.", ["task"], registry=self._registry)
        self.previews = Summary("unidecouple_preview_seconds", "Seconds that each partial image took.", registry=self._registry)
        self._jobs = Counter("unidecouple_jobs", "Answers and images, by how they ended.", ["task", "how"], registry=self._registry)
        self._seconds = Histogram(
            "unidecouple_job_seconds",
            "Seconds from a job's coming to its result.",
            ["task"],
            buckets=_SECONDS,
            registry=self._registry,
        )

    def job_ended(self, task: Task, how: str, seconds: float) -> None:
        """A job ended: "done", "failed" or "cancelled"."""
        self._jobs.labels(task.key, how).inc()
        if how == "done":
            self._seconds.labels(task.key).observe(seconds)

    def observe(self, scheduler: Scheduler) -> None:
        """Show how many jobs of ``scheduler`` wait and run, and whether it is alive, whenever they are asked for."""
        waiting = Gauge("unidecouple_waiting", "Answers and images that wait for a place.", ["task"], registry=self._registry)
        running = Gauge("unidecouple_running", "Answers and images that are given tokens.", ["task"], registry=self._registry)
        for task, task_queue in scheduler.task_queues.items():
            waiting.labels(task.key).set_function(partial(getattr, task_queue, "waiting"))
            running.labels(task.key).set_function(partial(getattr, task_queue, "running"))
        alive = Gauge("unidecouple_alive", "1 while jobs can be done.", registry=self._registry)
        alive.set_function(lambda: float(scheduler.alive))

    def text(self) -> bytes:
        """All of them in Prometheus's text form."""
        return generate_latest(self._registry)
