"""What partial images cost: drawing with three of each on a thread of their own, on the model's thread, and without any.

    python -m benchmarks.serve_previews

The shipped base, guided images, through the server's own scheduler. Wall seconds until the last image is there, the ways taken
in turn: what a client waits is wall time.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from typing import Any

from unidecouple.serve.growing import Previewer, partial_token_counts

from benchmarks.record import Result, Row
from benchmarks.timing import one_thread
from unidecouple.batch import Task
from unidecouple.generate.engine import Engine
from unidecouple.generate.image_generator import ImageProgress
from unidecouple.generate.jobs import ImageJob
from unidecouple.serve.metrics import Metrics
from unidecouple.serve.pictures import as_png
from unidecouple.serve.scheduler import Scheduler
from unidecouple.serve.stream import JobEvents
from unidecouple.serve.task_queue import QueuedJob

COUNTS, PARTIAL = (1, 4, 16), 3


class Waiting(JobEvents):
    """Counts the previews that arrive before their image is done."""

    def __init__(self) -> None:
        super().__init__()
        self.in_time = 0

    def send(self, index: int, value: Any) -> None:
        """See ``JobEvents``."""
        self.in_time += isinstance(value, str)


class Ways:
    """One scheduler, and the three ways to draw with it."""

    def __init__(self) -> None:
        self.engine = Engine.load("unified", max_batch_size=max(COUNTS))
        self.scheduler = Scheduler(self.engine)
        self.previewer = Previewer(self.scheduler, Metrics())
        self.places = partial_token_counts(self.engine.images.length, PARTIAL)

    def close(self) -> None:
        """End all threads."""
        self.scheduler.close()
        self.previewer.close()

    async def draw(self, count: int, way: str) -> tuple[float, int]:
        """Seconds that ``count`` images took, and the previews that came before the last was done."""
        events = Waiting()
        jobs = [self._job(events, index, way) for index in range(count)]
        began = time.perf_counter()
        self.scheduler.submit(Task.T2I, jobs)
        await asyncio.gather(*(asyncio.wrap_future(job.future) for job in jobs))
        seconds, in_time = time.perf_counter() - began, events.in_time
        await asyncio.sleep(0.2)  # what is on its way when the last image is done ends, and disturbs no other turn
        return seconds, in_time

    def _job(self, events: Waiting, index: int, way: str) -> QueuedJob[Any]:
        work = ImageJob.of(self.engine.builder, "a photo of a red cow", (index,))
        if way != "model's thread":
            return self.previewer.job(events, index, work, self.places if way == "own thread" else ())

        def watch(picture: ImageProgress) -> None:
            if picture.count in self.places:
                events.send(index, as_png(self.engine.preview(self.engine.images.partial(picture))))

        return QueuedJob(work, watch)


async def measure(ways: Ways, turns: int) -> tuple[list[Row], dict[str, Any]]:
    """Rows of the table, and every turn's seconds."""
    rows, details = [], {}
    for count in COUNTS:
        taken: dict[str, list[tuple[float, int]]] = {way: [] for way in ("none", "own thread", "model's thread")}
        for turn in range(turns + 1):
            for way, found in taken.items():
                one = await ways.draw(count, way)
                if turn:  # the first does not count
                    found.append(one)
        seconds = {way: [one for one, _ in found] for way, found in taken.items()}
        base = statistics.median(seconds["none"])
        rows.append(Row(f"{count} drawn, without", base, "s", min(seconds["none"]), max(seconds["none"])))
        for way in ("own thread", "model's thread"):
            ratios = [a / b for a, b in zip(seconds[way], seconds["none"], strict=True)]
            rows.append(
                Row(f"{count} drawn, {way} / without", statistics.median(seconds[way]) / base, "x", min(ratios), max(ratios))
            )
            rows.append(Row(f"{count} drawn, {way}: in time", statistics.mean(n for _, n in taken[way]), f"of {PARTIAL * count}"))
        details[str(count)] = seconds
    return rows, details


def main() -> None:
    """Run it, print the table and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=15, help="of each way (default: 15)")
    turns = parser.parse_args().turns
    one_thread()
    ways = Ways()
    try:
        rows, details = asyncio.run(measure(ways, turns))
    finally:
        ways.close()
    settings = {
        "model": "unified",
        "partial_images": PARTIAL,
        "image_tokens": ways.engine.images.length,
        "turns": turns,
        "threads": 1,
    }
    wall = {"seconds": details, "wall": "wall seconds, whatever else the machine does; not this file's CPU clock"}
    result = Result("previews", "serve: partial images", settings, rows, wall)
    print(result.table())
    print(result.write())


if __name__ == "__main__":
    main()
