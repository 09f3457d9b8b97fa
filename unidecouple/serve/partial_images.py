"""Partial images: after which tokens they are made, the thread that makes them, and OpenAI's events of one request."""

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
from unidecouple.serve.stream import Watcher, error_event, event
from unidecouple.serve.task_queue import QueuedJob

_LOG = logging.getLogger(__name__)

PARTIAL, COMPLETED = "image_generation.partial_image", "image_generation.completed"


def due(length: int, count: int) -> tuple[int, ...]:
    """Return the token counts, of ``length``, after which an image is shown: ``count`` of them, evenly spaced."""
    return tuple(sorted({length * part // (count + 1) for part in range(1, count + 1)} - {0}))


class PartialImageRenderer:
    """Decodes partial images on a separate thread, so that neither the next tokens nor finished images wait for them.

    Decoding an image's tokens can take as long as generating several of them. A partial image that is not made before its image is
    done or cancelled is left out, and so is one that fails.

    Args:
        scheduler: that generates the images.
        metrics: counts the seconds that each takes.
    """

    def __init__(self, scheduler: Scheduler, metrics: Metrics) -> None:
        self._scheduler, self._metrics = scheduler, metrics
        self._thread = ThreadPoolExecutor(1, "unidecouple-previewer")

    def close(self) -> None:
        """End the thread; the scheduler must be closed before."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def job(self, watcher: Watcher, index: int, work: Any, places: tuple[int, ...]) -> QueuedJob[Any]:
        """A job whose previews after ``places`` tokens (base64 of a PNG) arrive at ``watcher``, and then its image."""
        passed = 0

        def on_progress(image: ImageProgress) -> None:
            nonlocal passed
            if passed < len(places) and image.count >= places[passed]:
                passed += 1
                generator: Any = self._scheduler.task_queues[Task.T2I].generator  # after a fault it is another
                self._thread.submit(self._make, generator.partial(image), job, lambda preview: watcher.put(index, preview))

        job = QueuedJob(work, on_progress)
        return watcher.follow(index, job)

    def _make(self, tokens: Tensor, job: QueuedJob[Any], put: Callable[[str], None]) -> None:
        if job.future.done():
            return
        try:
            with self._metrics.previews.time():
                preview = as_png(self._scheduler.engine.preview(tokens))
        except Exception:  # noqa: BLE001 -- whatever it is, the image itself does not need it
            _LOG.exception("a partial image is left out")
            return
        put(preview)


async def image_events(
    watcher: Watcher,
    count: int,
    base: Mapping[str, Any],
    png: Callable[[Image.Image], Awaitable[str]],
    finished: Callable[[FinishedImage], Mapping[str, Any]],
) -> AsyncIterator[str]:
    """The events of ``count`` images, each with its number as ``index`` (ours; OpenAI streams one image).

    Args:
        watcher: where previews and images arrive.
        count: of images.
        base: fields of every event.
        png: an image in base64.
        finished: further fields of a finished image's event.
    """
    shown, done = [0] * count, [False] * count
    while not all(done):
        index, arrived = await watcher.next()
        if isinstance(arrived, Exception):
            yield error_event(arrived, "error")
            return
        if done[index]:  # a preview that came too late
            continue
        if isinstance(arrived, FinishedImage):
            done[index] = True
            name, more = COMPLETED, {"b64_json": await png(arrived.image), **finished(arrived)}
        else:
            name, more = PARTIAL, {"b64_json": arrived, "partial_image_index": shown[index]}
            shown[index] += 1
        yield event({"type": name, **base, "index": index, **more}, name)
