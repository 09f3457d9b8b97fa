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
    """Server-sent events; when the response ends for any reason, its ``jobs`` are cancelled."""

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


class JobEvents:
    """Passes progress and results of jobs from the worker's thread to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

    def watch(self, index: int, job: QueuedJob[Any]) -> QueuedJob[Any]:
        """Return ``job``; when it ends, ``next`` returns (index, result or error)."""

        def end(future: Future[Any]) -> None:
            if not future.cancelled():
                self.send(index, future.exception() or future.result())

        job.future.add_done_callback(end)
        return job

    async def next(self) -> tuple[int, Any]:
        """Return the next (index, progress, result or error)."""
        return await self._queue.get()

    def send(self, index: int, value: Any) -> None:
        """Send progress or a result of job ``index``; may be called from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server is gone
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, value))


def answer_job(events: JobEvents, index: int, work: Any) -> QueuedJob[Any]:
    """Return a job that sends its new tokens, and then its answer, to ``events``."""
    seen = 0

    def on_progress(answer: AnswerProgress) -> None:
        nonlocal seen
        if len(answer.tokens) > seen:
            events.send(index, answer.tokens[seen:])
            seen = len(answer.tokens)

    return events.watch(index, QueuedJob(work, on_progress))


async def chat_events(
    events: JobEvents,
    count: int,
    base: Mapping[str, Any],
    decode: Callable[[Sequence[int]], str],
    stops: Sequence[str],
    count_usage: Callable[[int], dict[str, int] | None],
) -> AsyncIterator[str]:
    """Stream the chunks of ``count`` answers in OpenAI's form.

    Text is sent once no further token can change it. Text that ends in U+FFFD (an incomplete character) waits, and so does text
    that may be the start of one of ``stops``.
    """
    tokens: list[list[int]] = [[] for _ in range(count)]
    sent = [""] * count

    def chunk(index: int, delta: Mapping[str, str], finish: str | None = None) -> str:
        return event({**base, "choices": [{"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}]})

    for index in range(count):
        yield chunk(index, {"role": "assistant", "content": ""})
    left = count
    while left:
        index, arrived = await events.next()
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
    if (total := count_usage(sum(map(len, tokens)))) is not None:
        yield event({**base, "choices": [], "usage": total})
    yield "data: [DONE]\n\n"


def event(value: Mapping[str, Any], name: str | None = None) -> str:
    """A server-sent event, with a ``name`` or without."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(value)}\n\n"


def error_event(error: BaseException, name: str | None = None) -> str:
    """Return the last event of a stream whose job failed, in OpenAI's form."""
    return event(json.loads(bytes(of_exception(error).body)), name)
