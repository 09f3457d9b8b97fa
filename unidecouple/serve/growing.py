"""Pictures while they grow: which tokens they are shown after, and OpenAI's events of one request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from PIL import Image

from unidecouple.generate.drawing import Picture
from unidecouple.serve.scheduler import Drawn
from unidecouple.serve.stream import Watcher, error_event, event

PARTIAL, COMPLETED = "image_generation.partial_image", "image_generation.completed"


def due(length: int, count: int) -> tuple[int, ...]:
    """After how many of a picture's ``length`` tokens it is shown: ``count`` times, evenly spaced; fewer if it has fewer."""
    return tuple(sorted({length * part // (count + 1) for part in range(1, count + 1)} - {0}))


def previews(places: tuple[int, ...], render: Callable[[Picture], Image.Image]) -> Callable[[Picture], Image.Image | None]:
    """To look at one picture with: what ``render`` makes of it once it has come to the next of ``places``, else None."""
    passed = 0

    def look(picture: Picture) -> Image.Image | None:
        nonlocal passed
        if passed == len(places) or picture.drawn < places[passed]:
            return None
        passed += 1
        return render(picture)

    return look


async def image_events(
    watcher: Watcher,
    count: int,
    base: Mapping[str, Any],
    png: Callable[[Image.Image], Awaitable[str]],
    finished: Callable[[Drawn], Mapping[str, Any]],
) -> AsyncIterator[str]:
    """The events of ``count`` pictures, each with its number as ``index`` (ours; OpenAI streams one picture).

    Args:
        watcher: where previews and pictures arrive.
        count: of pictures.
        base: fields of every event.
        png: a picture in base64.
        finished: further fields of a finished picture's event.
    """
    shown, left = [0] * count, count
    while left:
        index, arrived = await watcher.next()
        if isinstance(arrived, Exception):
            yield error_event(arrived, "error")
            return
        if isinstance(arrived, Drawn):
            left -= 1
            name, more = COMPLETED, {"b64_json": await png(arrived.picture), **finished(arrived)}
        else:
            name, more = PARTIAL, {"b64_json": await png(arrived), "partial_image_index": shown[index]}
            shown[index] += 1
        yield event({"type": name, **base, "index": index, **more}, name)
