"""Waiting for jobs, for their results or token by token; when the client disconnects, its jobs are cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse

from unidecouple.generate.answer_generator import AnswerProgress
from unidecouple.generate.stopping import before_stop, settled
from unidecouple.serve.errors import ApiError, of_exception
from unidecouple.serve.scheduler import FinishedAnswer
from unidecouple.serve.task_queue import QueuedJob

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


T = TypeVar("T")


async def result(request: Request, future: Future[T]) -> T:
    """``results`` of one future."""
    [only] = await results(request, [future])
    return only


async def results(request: Request, futures: Sequence[Future[T]]) -> list[T]:
    """Results of ``futures``. If the client disconnects, or one fails, all that are not done are cancelled.

    Raises:
        ApiError: the client disconnected.
        Exception: what the first future that failed ended with.
    """
    waiting = asyncio.gather(*map(asyncio.wrap_future, futures))
    waiting.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # looked at, or asyncio logs an error
    gone = asyncio.ensure_future(_gone(request))
    try:
        either: set[asyncio.Future[Any]] = {waiting, gone}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ApiError(499, "the client is gone")
        return list(await waiting)
    finally:
        gone.cancel()
        waiting.cancel()
        for future in futures:
            future.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Events(StreamingResponse):
    """Server-sent events that end their ``jobs`` when they end, however that comes."""

    def __init__(self, events: AsyncIterator[str], jobs: Sequence[QueuedJob[Any]]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._jobs = jobs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ``StreamingResponse``."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            for job in self._jobs:
                job.future.cancel()


class Watcher:
    """Brings what jobs make, and their ends, from the worker's thread to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

    def follow(self, index: int, job: QueuedJob[Any]) -> QueuedJob[Any]:
        """``job``, whose end arrives here as (index, result or error)."""

        def end(future: Future[Any]) -> None:
            if not future.cancelled():
                self.put(index, future.exception() or future.result())

        job.future.add_done_callback(end)
        return job

    async def next(self) -> tuple[int, Any]:
        """The next arrival."""
        return await self._queue.get()

    def put(self, index: int, news: Any) -> None:
        """Let ``news`` of a job arrive, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server is gone
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, news))


def answer_job(watcher: Watcher, index: int, work: Any) -> QueuedJob[Any]:
    """A job whose new tokens arrive at ``watcher``, and then its answer."""
    seen = 0

    def on_progress(answer: AnswerProgress) -> None:
        nonlocal seen
        if len(answer.tokens) > seen:
            watcher.put(index, answer.tokens[seen:])
            seen = len(answer.tokens)

    return watcher.follow(index, QueuedJob(work, on_progress))


async def chat_events(
    watcher: Watcher,
    count: int,
    base: Mapping[str, Any],
    decode: Callable[[Sequence[int]], str],
    stops: Sequence[str],
    used: Callable[[int], dict[str, int]],
    with_usage: bool,
) -> AsyncIterator[str]:
    """The chunks of ``count`` answers in OpenAI's form.

    Words go out as soon as no further token can change them or take them back: what ends in U+FFFD, a part of a character, waits,
    and so does what may be the start of one of ``stops``.
    """
    tokens: list[list[int]] = [[] for _ in range(count)]
    sent = [""] * count

    def chunk(index: int, delta: Mapping[str, str], finish: str | None = None) -> str:
        return event({**base, "choices": [{"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}]})

    for index in range(count):
        yield chunk(index, {"role": "assistant", "content": ""})
    left = count
    while left:
        index, arrived = await watcher.next()
        if isinstance(arrived, Exception):
            yield error_event(arrived)
            return
        finished = isinstance(arrived, FinishedAnswer)
        if finished:
            tokens[index] = list(arrived.tokens)
        else:
            tokens[index] += arrived
        text = decode(tokens[index])
        shown = before_stop(text, stops) if finished else settled(text, stops)
        if (finished or not text.endswith("\ufffd")) and len(shown) > len(sent[index]):
            yield chunk(index, {"content": shown[len(sent[index]) :]})
            sent[index] = shown
        if finished:
            left -= 1
            yield chunk(index, {}, "stop" if arrived.stopped else "length")
    total = used(sum(map(len, tokens)))
    if with_usage:
        yield event({**base, "choices": [], "usage": total})
    yield "data: [DONE]\n\n"


def event(value: Mapping[str, Any], name: str | None = None) -> str:
    """A server-sent event, with a ``name`` or without."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(value)}\n\n"


def error_event(error: BaseException, name: str | None = None) -> str:
    """What a job ended with, in OpenAI's form; a stream ends with it."""
    return event(json.loads(bytes(of_exception(error).body)), name)
