"""Routes in OpenAI's form over one scheduler."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse, Response

from unidecouple import __version__
from unidecouple.batch import Task
from unidecouple.generate.engine import Engine
from unidecouple.generate.stopping import before_stop
from unidecouple.serve.bodies import parse, parse_form
from unidecouple.serve.errors import ApiError, add_handlers
from unidecouple.serve.hosts import HostGuard
from unidecouple.serve.limits import Limits
from unidecouple.serve.metrics import Metrics
from unidecouple.serve.page import page
from unidecouple.serve.partial_images import PartialImageRenderer, image_events, partial_token_counts
from unidecouple.serve.pictures import UPLOAD, Uploads, as_png, from_address, open_image
from unidecouple.serve.prepare import Prepared, Preparer
from unidecouple.serve.request_limits import RequestLimits
from unidecouple.serve.routing import RoutingRequest, Viewer
from unidecouple.serve.scheduler import FinishedAnswer, FinishedImage, Scheduler
from unidecouple.serve.schemas import (
    ERRORS,
    STREAMED,
    Body,
    ChatRequest,
    EditRequest,
    ImageRequest,
    Message,
    described,
    form_schema,
    image_usage,
    usage,
    with_schemas,
)
from unidecouple.serve.stream import Events, JobEvents, answer_job, chat_events, result, results
from unidecouple.serve.task_queue import QueuedJob

B = TypeVar("B", bound=Body)
TASK_TITLES = {Task.MMU: "understanding", Task.T2I: "generation"}


_FILES, _FIELDS = 16, 32
"""Most files and texts of a form."""

_TEXT_BYTES = 256 << 10
"""A larger body has images, and is parsed on their thread."""


class Server:
    """An engine with its scheduler, and the settings of the routes.

    Args:
        engine: of one or both tasks.
        name: of the model, as clients name it.
        limits: of requests.
        api_key: required from clients; None: no key is required.
        with_page: whether there is a page at ``/``, and ``/v1/routing``, for which the whole model stays in memory.
        hosts: names and addresses that clients may call the server by, besides those of this machine's loopback.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        limits: Limits | None = None,
        api_key: str | None = None,
        with_page: bool = True,
        hosts: Iterable[str] = (),
    ) -> None:
        whole = engine.model if with_page else None
        self.name, self.limits, self.created = name, limits or Limits(), int(time.time())
        self.metrics, self.uploads = Metrics(), Uploads(self.limits.uploads)
        self.preparer = Preparer(engine, self.limits)
        self.viewer = None if whole is None else Viewer(whole, self.preparer)
        self.scheduler = Scheduler(engine, self.limits.queue, self.metrics.job_ended)
        self.partial_renderer = PartialImageRenderer(self.scheduler, self.metrics)
        self.metrics.observe(self.scheduler)
        self._texts, self._pictures = (ThreadPoolExecutor(1, f"unidecouple-{what}") for what in ("texts", "pictures"))
        self._deadline: float | None = None
        self.app = FastAPI(
            title="unidecouple",
            version=__version__,
            lifespan=self._lifespan,
            responses=ERRORS,
            docs_url=None,  # FastAPI's pages run scripts of other servers
            redoc_url=None,
        )
        self.app.add_middleware(RequestLimits, limits=self.limits, metrics=self.metrics, api_key=api_key)
        self.app.add_middleware(HostGuard, hosts=tuple(hosts))  # the outermost
        add_handlers(self.app)
        self._add_routes()

    def refuse(self) -> None:
        """Accept no more work; the time limit for running work starts now."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self.limits.drain_seconds
        self.scheduler.refuse()

    def close(self) -> None:
        """Finish running work within the time limit since ``refuse``, then end all threads that can end."""
        self.refuse()
        assert self._deadline is not None
        self.scheduler.close(max(0.0, self._deadline - time.monotonic()))
        self.partial_renderer.close()
        for thread in (self._texts, self._pictures):
            thread.shutdown(wait=False, cancel_futures=True)
        if self.viewer is not None:
            self.viewer.close()

    async def _encode(self, picture: Image.Image) -> str:
        return await asyncio.wrap_future(self._pictures.submit(as_png, picture))

    async def _parsed(self, request: Request, model: type[B]) -> B:
        """The request's JSON body, parsed and validated off the event loop."""
        content = await request.body()
        thread = self._texts if len(content) <= _TEXT_BYTES else self._pictures
        return await result(request, thread.submit(parse, model, content, request.headers.get("content-type", "")))

    async def _pictures_in(self, request: Request, messages: Sequence[Message]) -> dict[str, np.ndarray]:
        """The images of ``messages`` by their addresses; decoded one by one while the client is connected."""
        limits, found = self.limits, {}
        for url, place in self.preparer.check(messages).items():
            if url.startswith(UPLOAD):
                found[url] = self.uploads.get(url, place).picture
            else:
                decoding = self._pictures.submit(from_address, url, limits, self.preparer.processor, place)
                found[url] = await result(request, decoding)
        return found

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
        bodies: dict[str, tuple[Any, type[Body], dict[int | str, dict[str, Any]] | None]] = {
            "/v1/chat/completions": (self.chat, ChatRequest, STREAMED),
            "/v1/images/generations": (self.images, ImageRequest, STREAMED),
        }
        if self.viewer is not None:
            bodies["/v1/routing"] = (self.routing, RoutingRequest, None)
            self.app.add_api_route("/", page, methods=["GET"], include_in_schema=False)
        for path, (route, model, responses) in bodies.items():
            body = described("application/json", {"$ref": f"#/components/schemas/{model.__name__}"})
            self.app.add_api_route(path, route, methods=["POST"], response_model=None, responses=responses, openapi_extra=body)
        self.app.openapi = partial(with_schemas, self.app.openapi, [model for _, model, _ in bodies.values()])  # type: ignore[method-assign]
        form = {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string", "enum": ["vision"]}}
        schema = {"type": "object", "required": ["file"], "properties": form}
        self._add_form("/v1/files", self.upload, schema)
        self._add_form("/v1/images/edits", self.edits, form_schema(EditRequest, "image"), STREAMED)

    def _add_form(self, path: str, route: Any, schema: dict[str, Any], responses: dict[int | str, Any] | None = None) -> None:
        body = described("multipart/form-data", schema)
        self.app.add_api_route(path, route, methods=["POST"], response_model=None, responses=responses, openapi_extra=body)

    async def health(self) -> JSONResponse:
        """Whether jobs can be done, and how many wait and run."""
        scheduler = self.scheduler
        jobs = {
            task.key: {"waiting": task_queue.waiting, "running": task_queue.running}
            for task, task_queue in scheduler.task_queues.items()
        }
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

    async def chat(self, request: Request) -> Response:
        """Answer a conversation, with images or without, in one response or as a stream."""
        body = await self._parsed(request, ChatRequest)
        self._check_model(body.model)
        self._check_task(Task.MMU)
        self.preparer.check_n(body.n)
        pictures = await self._pictures_in(request, body.messages)
        prepared = await result(request, self._texts.submit(self.preparer.chat, body, pictures))
        base = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": self.name, "seed": prepared.seed}
        builder, stops = self.preparer.builder, prepared.stops

        def decode(tokens: Any) -> str:
            return builder.tokenizer.decode(tokens, skip_special_tokens=True)

        def count_usage(completion: int) -> dict[str, int]:
            self.metrics.tokens.labels(Task.MMU.key).inc(completion)
            return usage(prepared.prompt_tokens, completion)

        if body.stream:
            events = JobEvents()
            jobs = [answer_job(events, index, job) for index, job in enumerate(prepared.jobs)]
            self.scheduler.submit(Task.MMU, jobs)
            wanted = body.stream_options is not None and body.stream_options.include_usage
            base["object"] = "chat.completion.chunk"

            def streamed_usage(completion: int) -> dict[str, int] | None:
                counted = count_usage(completion)
                return counted if wanted else None

            return Events(chat_events(events, len(jobs), base, decode, stops, streamed_usage), jobs)
        answers: list[FinishedAnswer] = await self._done(request, Task.MMU, prepared.jobs)
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": before_stop(decode(answer.tokens), stops)},
                "finish_reason": "stop" if answer.stopped else "length",
                "logprobs": None,
            }
            for index, answer in enumerate(answers)
        ]
        count = count_usage(sum(len(answer.tokens) for answer in answers))
        return JSONResponse({**base, "object": "chat.completion", "choices": choices, "usage": count})

    async def images(self, request: Request) -> Response:
        """Generate images, in one response or as a stream with partial images. Image i depends on the seed and i only."""
        body = await self._parsed(request, ImageRequest)
        if body.model is not None:
            self._check_model(body.model)
        self._check_task(Task.T2I)
        return await self._generated(request, body, ())

    async def edits(self, request: Request) -> Response:
        """Generate images from source images and a prompt, as ``images``."""
        async with request.form(max_files=_FILES, max_fields=_FIELDS) as form:
            entries = [(name.removesuffix("[]"), value) for name, value in form.multi_items()]
            files = [await value.read() for name, value in entries if name == "image" and isinstance(value, UploadFile)]
            uploads = [value for name, value in entries if name == "image" and isinstance(value, str) and value]
            wrong = next((name for name, value in entries if name != "image" and isinstance(value, UploadFile)), None)
            texts = {name: value for name, value in entries if name != "image" and isinstance(value, str)}
        if wrong is not None:
            raise ApiError(400, f"{wrong[:64]}: is not supported; leave it out", wrong, "extra_forbidden")
        body = parse_form(EditRequest, texts)
        if body.model is not None:
            self._check_model(body.model)
        self._check_task(Task.T2I)
        if not files and not uploads:
            raise ApiError(
                400, "image: is missing; give one or more as multipart/form-data, field `image` or `image[]`", "image", "missing"
            )
        if len(files) + len(uploads) > self.limits.source_images:
            raise ApiError(400, f"image: more than {self.limits.source_images} images", "image", "too_many_images")
        pictures = [self.uploads.get(number, "image").picture for number in uploads]
        for content in files:
            decoding = self._pictures.submit(open_image, content, self.limits, self.preparer.processor, "image")
            pictures.append(await result(request, decoding))
        return await self._generated(request, body, pictures)

    async def _generated(self, request: Request, body: ImageRequest, pictures: Sequence[np.ndarray]) -> Response:
        prepared = await result(request, self._texts.submit(self.preparer.images, body, pictures))
        if body.stream:
            return self._streamed(prepared, body.partial_images or 0, "image_edit" if pictures else "image_generation")
        images: list[FinishedImage] = await self._done(request, Task.T2I, prepared.jobs)
        data = [{"b64_json": await self._encode(one.image), "image_tokens": one.tokens} for one in images]
        return JSONResponse(
            {
                "created": int(time.time()),
                "data": data,
                "seed": prepared.seed,
                "size": self.preparer.size,
                "output_format": "png",
                "usage": self._count_usage(prepared, len(images)),
            }
        )

    async def routing(self, request: Request) -> dict[str, Any]:
        """Where each token of a request and its answer is routed, layer by layer, and how much layers attend across modalities."""
        body = await self._parsed(request, RoutingRequest)
        self._check_model(body.model)
        self._check_task(Task.MMU if body.drawn is None else Task.T2I)
        viewer = self.viewer
        assert viewer is not None
        pictures = await self._pictures_in(request, body.messages)
        task, sample = await result(request, self._texts.submit(viewer.read, body, pictures))
        return await result(request, viewer.begin(task, sample))

    async def upload(self, request: Request) -> dict[str, Any]:
        """Keep an image for later requests, which name its id where a data URL could stand."""
        if len(await request.body()) > self.limits.image_bytes + _TEXT_BYTES:
            message = f"file: an image has at most {self.limits.image_bytes:,} bytes"
            raise ApiError(400, message, "file", "image_too_large")
        async with request.form(max_files=1, max_fields=4) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise ApiError(400, "give the image as multipart/form-data, field `file`", "file")
            content, name = await file.read(), file.filename or ""
        decoding = self._pictures.submit(open_image, content, self.limits, self.preparer.processor, "file")
        picture = await result(request, decoding)
        return self._file_card(self.uploads.keep(name[:256], len(content), picture))

    async def file(self, file_id: str) -> dict[str, Any]:
        """One upload's name and size."""
        return self._file_card(file_id)

    async def delete_file(self, file_id: str) -> dict[str, Any]:
        """Forget an upload."""
        self.uploads.drop(file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    async def _done(self, request: Request, task: Task, work: Sequence[Any]) -> list[Any]:
        jobs = [QueuedJob(one) for one in work]
        self.scheduler.submit(task, jobs)
        return await results(request, [job.future for job in jobs])

    def _streamed(self, prepared: Prepared, partial_images: int, name: str) -> Response:
        """The stream of images with ``partial_images`` partial ones each; ``name`` begins those of its events."""
        events, token_counts = JobEvents(), partial_token_counts(self.preparer.builder.num_image_tokens, partial_images)

        def finished(image: FinishedImage) -> dict[str, Any]:
            return {"image_tokens": image.tokens, "seed": prepared.seed, "usage": self._count_usage(prepared, 1)}

        jobs = [self.partial_renderer.job(events, index, job, token_counts) for index, job in enumerate(prepared.jobs)]
        self.scheduler.submit(Task.T2I, jobs)
        made = {"created_at": int(time.time()), "size": self.preparer.size, "output_format": "png"}
        base = {**made, "quality": "auto", "background": "opaque"}
        return Events(image_events(events, len(jobs), base, self._encode, finished, name), jobs)

    def _count_usage(self, prepared: Prepared, images: int) -> dict[str, Any]:
        """Usage of finished images; also adds their tokens to the metrics."""
        generated = self.preparer.image_tokens * images
        self.metrics.tokens.labels(Task.T2I.key).inc(generated)
        return image_usage(prepared.prompt_tokens, prepared.source_tokens, generated)

    def _card(self) -> dict[str, Any]:
        titles = [TASK_TITLES[task] for task in self.scheduler.task_queues]
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "unidecouple", "tasks": titles}

    def _file_card(self, number: str) -> dict[str, Any]:
        kept = self.uploads.get(number, "file_id")
        plain = {"object": "file", "purpose": "vision", "status": "processed"}
        return {"id": number, "bytes": kept.size, "created_at": kept.created, "filename": kept.name, **plain}

    def _check_model(self, name: str) -> None:
        if name != self.name:
            raise ApiError(404, f"no model {name[:64]!r} here; there is {self.name!r}", "model", "model_not_found")

    def _check_task(self, task: Task) -> None:
        if task not in self.scheduler.task_queues:
            raise ApiError(400, f"the model {self.name!r} was loaded without {TASK_TITLES[task]}", "model", "unsupported_task")
