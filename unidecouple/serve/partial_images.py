"""Partial images while an image is generated: when they are made, the thread that decodes them, and the events of a request."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image
from torch import Tensor

from unidecouple.batch import Task
from unidecouple.generate.image_generator import ImageProgress
from unidecouple.serve.metrics import Metrics
from unidecouple.serve.pictures import as_png
from unidecouple.serve.scheduler import FinishedImage, Scheduler
from unidecouple.serve.stream import JobEvents, error_event, event
from unidecouple.serve.task_queue import QueuedJob

_LOG = logging.getLogger(__name__)


def partial_token_counts(length: int, count: int) -> tuple[int, ...]:
    """Return up to ``count`` evenly spaced token counts below ``length``, after which a partial image is made."""
    return tuple(sorted({length * part // (count + 1) for part in range(1, count + 1)} - {0}))


class PartialImageRenderer:
    """Decodes partial images on a separate thread, so that neither the next tokens nor finished images wait for them.

    Decoding an image can take as long as generating several tokens. A partial image is skipped if its image is finished or
    cancelled before it is decoded, or if decoding fails.

    Args:
        scheduler: generates the images.
        metrics: counts the seconds per partial image.
    """

    def __init__(self, scheduler: Scheduler, metrics: Metrics) -> None:
        self._scheduler, self._metrics = scheduler, metrics
        self._thread = ThreadPoolExecutor(1, "unidecouple-previewer")

    def close(self) -> None:
        """End the thread; the scheduler must be closed before."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def job(self, events: JobEvents, index: int, work: Any, token_counts: tuple[int, ...]) -> QueuedJob[Any]:
        """Return a job that sends a partial image (PNG in base64) after each of ``token_counts``, and then the image."""
        passed = 0

        def on_progress(image: ImageProgress) -> None:
            nonlocal passed
            if passed < len(token_counts) and image.count >= token_counts[passed]:
                passed += 1
                generator: Any = self._scheduler.task_queues[Task.T2I].generator  # a fault replaces the generator
                self._thread.submit(self._make, generator.partial(image), job, lambda preview: events.send(index, preview))

        job = QueuedJob(work, on_progress)
        return events.watch(index, job)

    def _make(self, tokens: Tensor, job: QueuedJob[Any], send: Callable[[str], None]) -> None:
        if job.future.done():
            return
        try:
            with self._metrics.previews.time():
                preview = as_png(self._scheduler.engine.preview(tokens))
        except Exception:  # noqa: BLE001 -- the image itself does not need the partial one
            _LOG.exception("a partial image is left out")
            return
        send(preview)


async def image_events(
    events: JobEvents,
    count: int,
    base: Mapping[str, Any],
    png: Callable[[Image.Image], Awaitable[str]],
    finished: Callable[[FinishedImage], Mapping[str, Any]],
    kind: str = "image_generation",
) -> AsyncIterator[str]:
    """Stream the events of ``count`` images; ``index`` is the number of the image (ours; OpenAI streams one image).

    Args:
        events: receives partial and finished images of the jobs.
        count: number of images.
        base: fields of every event.
        png: returns an image as a PNG in base64.
        finished: returns the further fields of a finished image's event.
        kind: begins the events' names; "image_edit" of an edit.
    """
    shown, done = [0] * count, [False] * count
    while not all(done):
        index, arrived = await events.next()
        if isinstance(arrived, Exception):
            yield error_event(arrived, "error")
            return
        if done[index]:  # a preview that came too late
            continue
        if isinstance(arrived, FinishedImage):
            done[index] = True
            name, more = f"{kind}.completed", {"b64_json": await png(arrived.image), **finished(arrived)}
        else:
            name, more = f"{kind}.partial_image", {"b64_json": arrived, "partial_image_index": shown[index]}
            shown[index] += 1
        yield event({"type": name, **base, "index": index, **more}, name)
