"""An image in the stream, as OpenAI's own client sees it: parts at even distances, and at the end the very same image."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent
from PIL import Image
from pydantic import TypeAdapter

from unidecouple.batch import Task
from unidecouple.generate.engine import MISSING_GREY
from unidecouple.serve.partial_images import image_events, partial_token_counts
from unidecouple.serve.scheduler import FinishedImage
from unidecouple.serve.stream import JobEvents
from waiting import until

EVENT: TypeAdapter[Any] = TypeAdapter(ImageGenPartialImageEvent | ImageGenCompletedEvent)
ROUTE = "/v1/images/generations"
ASKED: dict[str, Any] = {"model": "unified", "prompt": "a photo of a red cow"}


@pytest.fixture(scope="module")
def client(live: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def pixels(content: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def rows_drawn(content: str) -> int:
    """Rows of 16 pixels, a token each, that are not grey."""
    return sum(not (row == MISSING_GREY).all() for row in np.split(pixels(content), 4))


def in_time(live: Any) -> Any:
    """Have each step wait until all previews so far are made: a model this small is done before."""
    worker, thread = live.server.scheduler.task_queues[Task.T2I].generator, live.server.partial_renderer._thread
    step = worker.step
    worker.step = lambda: (thread.submit(int).result(20), step())[1]
    return worker


@pytest.fixture
def waited_for(live: Any) -> Iterator[None]:
    worker = in_time(live)
    yield
    del worker.step


def test_it_is_shown_at_even_distances() -> None:
    assert partial_token_counts(576, 3) == (144, 288, 432)
    assert partial_token_counts(16, 2) == (5, 10)
    assert partial_token_counts(16, 0) == ()
    assert partial_token_counts(2, 3) == (1,), "never before the first token, and never twice"


@pytest.mark.usefixtures("waited_for")
@pytest.mark.parametrize("partial", [0, 1, 3])
def test_a_picture_grows_to_the_same_one(client: openai.OpenAI, partial: int) -> None:
    whole = client.images.generate(**ASKED, extra_body={"seed": 3})
    events = list(client.images.generate(**ASKED, stream=True, partial_images=partial, extra_body={"seed": 3}))
    *parts, last = events
    assert [event.type for event in parts] == ["image_generation.partial_image"] * partial
    assert [event.partial_image_index for event in parts] == list(range(partial))
    assert [rows_drawn(event.b64_json) for event in parts] == {0: [], 1: [2], 3: [1, 2, 3]}[partial]
    assert last.type == "image_generation.completed"
    assert last.b64_json == whole.data[0].b64_json
    assert last.usage.to_dict() == whole.usage.to_dict()
    assert (last.usage.output_tokens, last.usage.input_tokens_details.image_tokens) == (16, 0)
    assert (last.seed, last.image_tokens) == (3, whole.data[0].image_tokens)
    for event in events:
        assert EVENT.validate_python(event.model_dump()).size == "64x64"


@pytest.mark.usefixtures("waited_for")
def test_several_grow_side_by_side_and_know_their_index(client: openai.OpenAI) -> None:
    whole = client.images.generate(**ASKED, n=6, extra_body={"seed": 4})  # more than run at a time
    parts, ends = [[] for _ in range(6)], {}
    for event in client.images.generate(**ASKED, n=6, stream=True, partial_images=2, extra_body={"seed": 4}):
        if event.type == "image_generation.completed":
            ends[event.index] = event.b64_json
        else:
            assert event.index not in ends
            parts[event.index].append(event.partial_image_index)
    assert parts == [[0, 1]] * 6
    assert [ends[index] for index in range(6)] == [one.b64_json for one in whole.data]


@pytest.mark.usefixtures("waited_for")
def test_events_are_named_and_metrics_count_them(live: Any) -> None:
    def shown() -> float:
        text = httpx.get(f"{live.url}/metrics").text
        return float(text.split("unidecouple_preview_seconds_count ")[1].split()[0])

    before = shown()
    reply = httpx.post(f"{live.url}{ROUTE}", json={"prompt": "a cow", "stream": True, "partial_images": 2})
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = [event.split("\n") for event in reply.text.removesuffix("\n\n").split("\n\n")]
    for name, data in events:
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"
    assert len(events) == 3
    assert shown() == before + 2


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"partial_images": 2}, "partial_images"),
        ({"stream": True, "partial_images": 4}, "partial_images"),
        ({"stream": 2}, "stream"),
    ],
)
def test_what_cannot_be_streamed_is_a_400(live: Any, body: dict[str, Any], param: str) -> None:
    reply = httpx.post(f"{live.url}{ROUTE}", json={"prompt": "a cow", **body})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_a_finished_picture_waits_for_no_preview(live: Any, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    go, engine = threading.Event(), live.server.scheduler.engine
    preview, made = engine.preview, []
    monkeypatch.setattr(engine, "preview", lambda tokens: (made.append(len(tokens)), go.wait(20), preview(tokens))[2])
    events = client.images.generate(**ASKED, n=2, stream=True, partial_images=3)
    assert [event.type for event in events] == ["image_generation.completed"] * 2
    go.set()
    live.server.partial_renderer._thread.submit(int).result(20)
    assert made == [4], "what is late is not made at all"


def test_a_preview_that_comes_after_its_picture_is_dropped() -> None:
    async def png(picture: Image.Image) -> str:
        return "whole"

    async def names() -> list[str]:
        events, drawn = JobEvents(), FinishedImage(Image.new("RGB", (1, 1)), ())
        for index, sent in ((0, "part"), (0, drawn), (0, "late"), (1, drawn)):
            events.send(index, sent)
        return [json.loads(event.split("data: ")[1])["b64_json"] async for event in image_events(events, 2, {}, png, lambda _: {})]

    assert asyncio.run(names()) == ["part", "whole", "whole"]


def test_a_preview_that_fails_is_left_out(
    live: Any, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live.server.scheduler.engine, "preview", lambda tokens: tokens.no_such_thing)
    events = client.images.generate(**ASKED, stream=True, partial_images=3)
    assert [event.type for event in events] == ["image_generation.completed"]
    live.server.partial_renderer._thread.submit(int).result(20)
    assert "a partial image is left out" in caplog.text


def test_a_fault_ends_the_stream_in_openais_form_and_the_next_picture_grows_again(serve: Any) -> None:
    asked = {**ASKED, "stream": True, "partial_images": 1, "extra_body": {"seed": 3}}
    with serve() as live, openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0) as client:
        worker = in_time(live)
        expected = [event.b64_json for event in client.images.generate(**asked)]
        assert len(expected) == 2
        list(client.images.generate(**{**asked, "extra_body": {"seed": 5}}))  # the old worker no longer holds its tokens

        def fail() -> Any:
            raise RuntimeError("injected")

        worker.step = fail
        with pytest.raises(openai.APIError, match="the model failed on this request") as failed:
            list(client.images.generate(**asked))
        assert failed.value.code == "fault"
        assert live.jobs == 0
        until(lambda: live.server.scheduler.task_queues[Task.T2I].generator is not worker)
        in_time(live)
        assert [event.b64_json for event in client.images.generate(**asked)] == expected, "of the new worker, not of the old one's"
