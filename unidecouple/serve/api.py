"""Routes in OpenAI's form over one scheduler."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request
from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse, Response

from unidecouple import __version__
from unidecouple.batch import Task
from unidecouple.generate.engine import Engine
from unidecouple.generate.stopping import before_stop
from unidecouple.serve.errors import ApiError, add_handlers
from unidecouple.serve.gate import Gate
from unidecouple.serve.growing import Previewer, due, image_events
from unidecouple.serve.lane import Job
from unidecouple.serve.limits import Limits
from unidecouple.serve.metrics import Metrics
from unidecouple.serve.page import page
from unidecouple.serve.pictures import UPLOAD, Uploads, as_png, open_picture
from unidecouple.serve.prepare import Prepared, Preparer
from unidecouple.serve.routing import RoutingRequest, Viewer
from unidecouple.serve.scheduler import Answered, Drawn, Scheduler
from unidecouple.serve.schemas import ERRORS, STREAMED, ChatRequest, ImageRequest, Message, image_usage, usage
from unidecouple.serve.stream import ClientGoneError, Events, Watcher, answer_job, chat_events, results

T = TypeVar("T")
_DOES = {Task.MMU: "understanding", Task.T2I: "generation"}


class Server:
    """An engine with its scheduler, and what routes need besides.

    Args:
        engine: of one or both tasks.
        name: of the model, as clients name it.
        limits: of requests.
        api_key: that clients must give; None asks for none.
        with_page: whether there is a page at ``/``, and ``/v1/routing``, for which the whole model stays in memory.
    """

    def __init__(
        self, engine: Engine, name: str, limits: Limits | None = None, api_key: str | None = None, with_page: bool = True
    ) -> None:
        whole = engine.model if with_page else None
        self.name, self.limits, self.created = name, limits or Limits(), int(time.time())
        self.metrics, self.uploads = Metrics(), Uploads(self.limits.uploads)
        self.preparer = Preparer(engine, self.limits)
        self.viewer = None if whole is None else Viewer(whole, self.preparer)
        self.scheduler = Scheduler(engine, self.limits.queue, self.metrics.ended)
        self.previewer = Previewer(self.scheduler, self.metrics)
        self.metrics.watch(self.scheduler)
        self._readers = ThreadPoolExecutor(1, "unidecouple-reader")
        self.app = FastAPI(title="unidecouple", version=__version__, lifespan=self._lifespan, responses=ERRORS)
        self.app.add_middleware(Gate, limits=self.limits, metrics=self.metrics, api_key=api_key)
        add_handlers(self.app)
        self._add_routes()

    def close(self) -> None:
        """Finish what runs, within the limits' time, and end all threads."""
        self.scheduler.close(self.limits.drain_seconds)
        self.previewer.close()
        self._readers.shutdown()
        if self.viewer is not None:
            self.viewer.close()

    async def read(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run ``function`` on the reading thread."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, function, *arguments)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(self.close)

    def _add_routes(self) -> None:
        for path, methods, route in (
            ("/health", ["GET"], self.health),
            ("/metrics", ["GET"], self.prometheus),
            ("/v1/models", ["GET"], self.models),
            ("/v1/models/{model}", ["GET"], self.model),
            ("/v1/files/{file_id}", ["GET"], self.file),
            ("/v1/files/{file_id}", ["DELETE"], self.delete_file),
        ):
            self.app.add_api_route(path, route, methods=methods, response_model=None)
        for path, streaming in (("/v1/chat/completions", self.chat), ("/v1/images/generations", self.images)):
            self.app.add_api_route(path, streaming, methods=["POST"], response_model=None, responses=STREAMED)
        if self.viewer is not None:
            self.app.add_api_route("/v1/routing", self.routing, methods=["POST"], response_model=None)
            self.app.add_api_route("/", page, methods=["GET"], include_in_schema=False)
        form = {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string", "enum": ["vision"]}}
        schema = {"type": "object", "required": ["file"], "properties": form}
        described = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
        self.app.add_api_route("/v1/files", self.upload, methods=["POST"], response_model=None, openapi_extra=described)

    async def health(self) -> JSONResponse:
        """Whether jobs can be done, and how many wait and run."""
        scheduler = self.scheduler
        jobs = {task.key: {"waiting": lane.waiting, "running": lane.running} for task, lane in scheduler.lanes.items()}
        status = "ok" if scheduler.alive else "failed"
        return JSONResponse({"status": status, "model": self.name, "jobs": jobs}, 200 if scheduler.alive else 503)

    async def prometheus(self) -> Response:
        """Metrics in Prometheus's text form."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self) -> dict[str, Any]:
        """The one model."""
        return {"object": "list", "data": [self._card()]}

    async def model(self, model: str) -> dict[str, Any]:
        """The model, by its name."""
        self._check_model(model)
        return self._card()

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Answer a conversation, with pictures or without, whole or as a stream."""
        self._check_model(body.model)
        self._check_task(Task.MMU)
        prepared = await self.read(self.preparer.chat, body, self._uploads_in(body.messages))
        base = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": self.name, "seed": prepared.seed}
        builder, stops = self.preparer.builder, prepared.stops

        def decode(tokens: Any) -> str:
            return builder.tokenizer.decode(tokens, skip_special_tokens=True)

        def used(completion: int) -> dict[str, int]:
            self.metrics.tokens.labels(Task.MMU.key).inc(completion)
            return usage(prepared.prompt_tokens, completion)

        if body.stream:
            watcher = Watcher()
            jobs = [answer_job(watcher, index, work) for index, work in enumerate(prepared.work)]
            self.scheduler.submit(Task.MMU, jobs)
            wanted = body.stream_options is not None and body.stream_options.include_usage
            base["object"] = "chat.completion.chunk"
            return Events(chat_events(watcher, len(jobs), base, decode, stops, used, wanted), jobs)
        answers: list[Answered] = await self._done(request, Task.MMU, prepared.work)
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": before_stop(decode(answer.tokens), stops)},
                "finish_reason": "stop" if answer.ended else "length",
                "logprobs": None,
            }
            for index, answer in enumerate(answers)
        ]
        count = used(sum(len(answer.tokens) for answer in answers))
        return JSONResponse({**base, "object": "chat.completion", "choices": choices, "usage": count})

    async def images(self, body: ImageRequest, request: Request) -> Response:
        """Draw pictures for a prompt, whole or as they grow. Picture i depends on the seed and i only."""
        if body.model is not None:
            self._check_model(body.model)
        self._check_task(Task.T2I)
        prepared = await self.read(self.preparer.images, body)
        if body.stream:
            return self._growing(prepared, body.partial_images or 0)
        pictures: list[Drawn] = await self._done(request, Task.T2I, prepared.work)
        data = [{"b64_json": await self.read(as_png, one.picture), "image_tokens": one.tokens} for one in pictures]
        return JSONResponse(
            {
                "created": int(time.time()),
                "data": data,
                "seed": prepared.seed,
                "size": self.preparer.size,
                "output_format": "png",
                "usage": self._used(prepared, len(pictures)),
            }
        )

    async def routing(self, body: RoutingRequest) -> dict[str, Any]:
        """Where each token of a request and its answer is routed, layer by layer, and how much layers look across."""
        self._check_model(body.model)
        self._check_task(Task.MMU if body.drawn is None else Task.T2I)
        viewer = self.viewer
        assert viewer is not None
        task, sample = await self.read(viewer.read, body, self._uploads_in(body.messages))
        return await asyncio.wrap_future(viewer.begin(task, sample))

    async def upload(self, request: Request) -> dict[str, Any]:
        """Keep a picture for later requests, which name its id where a data URL could stand."""
        async with request.form(max_files=1, max_fields=4) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise ApiError(400, "give the picture as multipart/form-data, field `file`", "file")
            content, name = await file.read(), file.filename or ""
        picture = await self.read(open_picture, content, self.limits, self.preparer.processor, "file")
        return self._file_card(self.uploads.keep(name[:256], len(content), picture))

    async def file(self, file_id: str) -> dict[str, Any]:
        """One upload's name and size."""
        return self._file_card(file_id)

    async def delete_file(self, file_id: str) -> dict[str, Any]:
        """Forget an upload."""
        self.uploads.drop(file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    async def _done(self, request: Request, task: Task, work: Any) -> list[Any]:
        jobs = [Job(one) for one in work]
        self.scheduler.submit(task, jobs)
        try:
            return await results(request, jobs)
        except ClientGoneError as error:
            raise ApiError(499, "the client is gone") from error

    def _growing(self, prepared: Prepared, partial_images: int) -> Response:
        """The stream of pictures that are shown ``partial_images`` times before they are done."""
        watcher, places = Watcher(), due(self.preparer.builder.num_image_tokens, partial_images)

        def finished(drawn: Drawn) -> dict[str, Any]:
            return {"image_tokens": drawn.tokens, "seed": prepared.seed, "usage": self._used(prepared, 1)}

        jobs = [self.previewer.job(watcher, index, work, places) for index, work in enumerate(prepared.work)]
        self.scheduler.submit(Task.T2I, jobs)
        made = {"created_at": int(time.time()), "size": self.preparer.size, "output_format": "png"}
        base = {**made, "quality": "auto", "background": "opaque"}
        return Events(image_events(watcher, len(jobs), base, partial(self.read, as_png), finished), jobs)

    def _used(self, prepared: Prepared, pictures: int) -> dict[str, Any]:
        """Usage of ``pictures`` that are done, which the metrics are told of."""
        drawn = self.preparer.image_tokens * pictures
        self.metrics.tokens.labels(Task.T2I.key).inc(drawn)
        return image_usage(prepared.prompt_tokens, drawn)

    def _uploads_in(self, messages: Sequence[Message]) -> dict[str, np.ndarray]:
        """The uploads that ``messages`` name."""
        parts = [part for message in messages if not isinstance(message.content, str) for part in message.content]
        urls = {part.image_url.url for part in parts if part.type != "text"}
        return {url: self.uploads.get(url, "messages").picture for url in urls if url.startswith(UPLOAD)}

    def _card(self) -> dict[str, Any]:
        does = [_DOES[task] for task in self.scheduler.lanes]
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "unidecouple", "tasks": does}

    def _file_card(self, number: str) -> dict[str, Any]:
        kept = self.uploads.get(number, "file_id")
        plain = {"object": "file", "purpose": "vision", "status": "processed"}
        return {"id": number, "bytes": kept.size, "created_at": kept.created, "filename": kept.name, **plain}

    def _check_model(self, name: str) -> None:
        if name != self.name:
            raise ApiError(404, f"no model {name!r} here; there is {self.name!r}", "model", "model_not_found")

    def _check_task(self, task: Task) -> None:
        if task not in self.scheduler.lanes:
            raise ApiError(400, f"the model {self.name!r} was loaded without {_DOES[task]}", "model", "unsupported_task")
