"""The server as OpenAI's own client sees it."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from unidecouple.generate.engine import Engine


@pytest.fixture(scope="module")
def client(live: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load("unified")


def about(url: str, question: str = "What is this?") -> list[Any]:
    picture = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": question}]}]


def test_an_answer_is_the_engines(client: openai.OpenAI, engine: Engine, data_url: str) -> None:
    said = client.chat.completions.create(model="unified", messages=about(data_url))
    red = Image.new("RGB", (80, 40), "red")
    assert said.choices[0].message.content == engine.understand([red], ["What is this?"])[0]
    assert said.choices[0].finish_reason == "stop"
    assert said.usage is not None
    assert said.usage.prompt_tokens == len(engine.builder.understanding_prompt("What is this?"))
    assert said.usage.completion_tokens == len(said.choices[0].message.content.split())


def test_a_stream_says_the_same(client: openai.OpenAI, data_url: str) -> None:
    asked: dict[str, Any] = {
        "model": "unified",
        "messages": about(data_url, "Describe the image."),
        "temperature": 1.5,
        "seed": 5,
        "n": 3,
    }
    whole = client.chat.completions.create(**asked, max_tokens=6)
    words, ends = ["", "", ""], ["", "", ""]
    usage = None
    for chunk in client.chat.completions.create(
        **asked, max_completion_tokens=6, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            words[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason or ends[choice.index]
    assert words == [choice.message.content for choice in whole.choices]
    assert len(set(words)) > 1
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage


def test_a_conversation_of_turns_and_an_upload(client: openai.OpenAI, png: bytes, data_url: str) -> None:
    kept = client.files.create(file=("red.png", png), purpose="vision")
    assert client.files.retrieve(kept.id).bytes == len(png)
    first = client.chat.completions.create(model="unified", messages=about(kept.id))
    assert (
        first.choices[0].message.content
        == client.chat.completions.create(model="unified", messages=about(data_url)).choices[0].message.content
    )
    further = [*about(kept.id), first.choices[0].message, {"role": "user", "content": "Is it red?"}]
    assert client.chat.completions.create(model="unified", messages=further).choices[0].message.content
    client.files.delete(kept.id)
    with pytest.raises(openai.NotFoundError, match="no upload"):
        client.chat.completions.create(model="unified", messages=about(kept.id))


def test_its_own_answers_are_history_as_the_client_dumps_them(client: openai.OpenAI) -> None:
    asked: list[Any] = [{"role": "user", "content": "What is this?"}]
    empty = client.chat.completions.create(model="unified", messages=asked, max_tokens=8, stop=["a", "e", "i", "o", "t", "s"][:4])
    for answer in (client.chat.completions.create(model="unified", messages=asked), empty):
        message = answer.choices[0].message
        turns = [*asked, message.model_dump(), {"role": "user", "content": "And?"}]
        again = client.chat.completions.create(model="unified", messages=turns, tools=None, seed=None, frequency_penalty=0)  # type: ignore[call-overload]
        assert again.choices[0].finish_reason in ("stop", "length")


def test_the_documented_routes_are_those_that_exist(live: Any) -> None:
    lines = (Path(__file__).parents[2] / "docs" / "http.md").read_text(encoding="utf-8").splitlines()
    documented: set[tuple[str, str]] = set()
    for line in lines[lines.index("| route | does |") + 2 :]:
        if not line.startswith("|"):
            break
        method = ""
        for word in re.findall(r"[^\s`,|]+", " ".join(re.findall(r"`([^`]*)`", line.split("|")[1]))):
            method = method if word.startswith("/") else word
            documented |= {(method, word)} if word.startswith("/") else set()
    exist = {
        (method, re.sub("{file_id}", "{id}", route.path)) for route in live.server.app.routes for method in route.methods - {"HEAD"}
    }
    methods = {path: {method for method, other in exist if other == path} for _, path in exist}
    assert {path for _, path in documented} == set(methods)
    assert documented <= exist
    for path in ("/docs", "/redoc"):
        assert httpx.get(f"{live.url}{path}").status_code == 404


def test_pictures_are_the_engines(client: openai.OpenAI, engine: Engine) -> None:
    drawn = client.images.generate(model="unified", prompt="a photo of a red cow", n=2, size="64x64", extra_body={"seed": 3})  # type: ignore[call-overload]
    ours = engine.generate_images(["a photo of a red cow"], 2, seed=3)[0]
    for one, other in zip(drawn.data, ours, strict=True):
        assert (np.array(Image.open(io.BytesIO(base64.b64decode(one.b64_json)))) == np.array(other)).all()


def test_models_and_health(client: openai.OpenAI, live: Any) -> None:
    assert [model.id for model in client.models.list()] == ["unified"]
    assert client.models.retrieve("unified").id == "unified"
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.models.retrieve("other")
    health = httpx.get(f"{live.url}/health").json()
    assert health == {
        "status": "ok",
        "model": "unified",
        "jobs": {"mmu": {"waiting": 0, "running": 0}, "t2i": {"waiting": 0, "running": 0}},
    }


def test_an_impossible_size_says_which_exist(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"sizes: 64x64, auto") as refused:
        client.images.generate(model="unified", prompt="a cow", size="1024x1024")
    assert refused.value.param == "size"
    assert refused.value.code == "invalid_size"


def test_metrics_count_what_was_done(client: openai.OpenAI, live: Any) -> None:
    client.images.generate(model="unified", prompt="a cow")
    text = httpx.get(f"{live.url}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['unidecouple_jobs_total{how="done",task="t2i"}']) >= 1
    assert float(values['unidecouple_tokens_total{task="t2i"}']) % 16 == 0
    assert values['unidecouple_running{task="t2i"}'] == values['unidecouple_waiting{task="mmu"}'] == "0.0"
    assert values["unidecouple_alive"] == "1.0"
    assert any(key.startswith('unidecouple_responses_total{path="/v1/images/generations",status="200"}') for key in values)


def test_an_api_key_is_asked_for(serve: Any) -> None:
    with serve(api_key="secret") as live:
        for key, fits in (("secret", True), ("secrets", False), ("sécret", False)):
            reply = httpx.get(f"{live.url}/v1/models", headers=[(b"Authorization", f"Bearer {key}".encode())])
            assert reply.status_code == (200 if fits else 401)
        assert reply.json()["error"]["type"] == "authentication_error"
        assert httpx.get(f"{live.url}/metrics").status_code == 401
        assert httpx.get(f"{live.url}/health").status_code == 200


def test_a_model_of_one_task_refuses_the_other() -> None:
    from starlette.testclient import TestClient

    from unidecouple.serve.api import Server

    server = Server(Engine.load("unified", task="mmu", max_batch_size=2), "half")
    with TestClient(server.app, "http://localhost") as client:
        refused = client.post("/v1/images/generations", json={"prompt": "a cow"})
        assert refused.status_code == 400
        assert "without generation" in refused.json()["error"]["message"]
        asked = {"model": "half", "messages": [{"role": "user", "content": "What?"}], "max_tokens": 1}
        assert client.post("/v1/chat/completions", json=asked).status_code == 200


def test_edits_are_the_engines(client: openai.OpenAI, engine: Engine, live: Any, png: bytes) -> None:
    red, blue = Image.new("RGB", (80, 40), "red"), Image.new("RGB", (64, 64), "blue")
    content = io.BytesIO()
    blue.save(content, "PNG")
    more: dict[str, Any] = {"n": 2, "response_format": "b64_json", "extra_body": {"seed": 4, "guidance_scale": 2.0}}
    made = client.images.edit(model="unified", image=png, prompt="a red cow", **more)
    sampling = engine.image_sampling.override(guidance_scale=2.0)
    expected = engine.generate_images("a red cow", 2, 4, sampling, images=[red])
    assert [decoded(one.b64_json).tobytes() for one in made.data] == [one.tobytes() for one in expected]
    assert made.usage is not None
    assert made.usage.input_tokens_details.image_tokens == engine.builder.source_length
    assert made.usage.input_tokens == len(engine.builder.generation_prompt("a red cow", images=1))
    [both] = engine.generate_images("a red cow", 1, 4, images=[red, blue])
    files = [("image[]", ("a.png", png)), ("image[]", ("b.png", content.getvalue()))]
    reply = httpx.post(f"{live.url}/v1/images/edits", data={"prompt": "a red cow", "seed": "4"}, files=files, timeout=60)
    assert decoded(reply.json()["data"][0]["b64_json"]).tobytes() == both.tobytes()
    events = [*client.images.edit(image=png, prompt="a cow", stream=True, partial_images=1)]
    assert {event.type for event in events[:-1]} <= {"image_edit.partial_image"}  # a preview may come too late to be sent
    assert events[-1].type == "image_edit.completed"


def decoded(content: str | None) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(content or "")))


@pytest.mark.parametrize(
    ("form", "images", "param", "code"),
    [
        ({"prompt": "a cow"}, [], "image", "missing"),
        ({}, ["png"], "prompt", "missing"),
        ({"prompt": "a cow"}, ["png"] * 3, "image", "too_many_images"),
        ({"prompt": "a cow"}, [b"no image"], "image", "invalid_image"),
        ({"prompt": "a <image>"}, ["png"], "prompt", "invalid_text"),
        ({"prompt": "a cow", "n": "9"}, ["png"], "n", "n_too_large"),
        ({"prompt": "a cow", "n": "two"}, ["png"], "n", "int_type"),
        ({"prompt": "a cow", "size": "1024x1024"}, ["png"], "size", "invalid_size"),
        ({"prompt": "a cow", "response_format": "url"}, ["png"], "response_format", "literal_error"),
        ({"prompt": "a cow", "model": "gpt-image-1"}, ["png"], "model", "model_not_found"),
        ({"prompt": "a cow", "image": "file-gone"}, [], "image", "no_such_file"),
    ],
)
def test_edits_that_are_refused(live: Any, png: bytes, form: dict[str, str], images: list[Any], param: str, code: str) -> None:
    files = [("image", ("a.png", png if image == "png" else image)) for image in images]
    reply = httpx.post(
        f"{live.url}/v1/images/edits", data=form, files=files or [("image", ("", b""))] if not form.get("image") else None
    )
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (404 if "no_such" in code or "model" in code else 400, param, code)


def test_a_mask_is_refused(live: Any, png: bytes) -> None:
    files = [("image", ("a.png", png)), ("mask", ("b.png", png))]
    reply = httpx.post(f"{live.url}/v1/images/edits", data={"prompt": "a cow"}, files=files)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "mask")
