"""POST /v1/routing: one request's tokens by layer, over a model with routers and over a dense one."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from unidecouple.batch import Task
from unidecouple.data.sequences import SequenceBuilder, collate
from unidecouple.diagnose.one_request import view_request
from unidecouple.generate.engine import Engine
from unidecouple.generate.image import draw_tokens
from unidecouple.generate.jobs import image_jobs
from unidecouple.generate.sampling import SamplingParams
from unidecouple.models.processing import UniJanusProcessor
from unidecouple.serve.api import Server
from unidecouple.serve.routing import MOST


def as_url(picture: np.ndarray) -> str:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


@pytest.fixture(scope="module")
def server(make_model: Callable[..., Any], processor: UniJanusProcessor) -> Iterator[Server]:
    server = Server(Engine(make_model(ffn="ta_moe"), processor, max_batch_size=2, max_prompt_length=40, max_length=96), "tiny")
    yield server
    server.close()


@pytest.fixture
def client(server: Server) -> TestClient:
    return TestClient(server.app, "http://localhost")  # no lifespan: the module's server stays open


def asked(url: str | None, *words: str) -> list[dict[str, Any]]:
    picture = [{"type": "image_url", "image_url": {"url": url}}] if url else []
    return [{"role": "user", "content": [*picture, *({"type": "text", "text": word} for word in words)]}]


def test_an_answer_is_seen_as_the_model_reads_it(
    client: TestClient, make_model: Callable[..., Any], builder: SequenceBuilder, pictures: np.ndarray
) -> None:
    body = {"model": "tiny", "messages": asked(as_url(pictures[0]), "Is there a cow in the image?"), "answer": "yes"}
    found = client.post("/v1/routing", json=body).json()
    turns = [("user", [pictures[0], "Is there a cow in the image?"]), ("assistant", ["yes"])]
    sample = builder.conversation(turns, Task.MMU)
    view = view_request(make_model(ffn="ta_moe"), collate([sample], 0))
    assert (found["task"], found["groups"], found["experts"], found["served"]) == ("mmu", ["mmu", "t2i"], [2, 2], "label")
    assert [row["group"] for row in found["learned"]] == [route.group.tolist() for route in view.learned]
    assert {tuple(row["group"]) for row in found["label"]} == {(0,) * len(sample.input_ids)}
    assert found["learned"][1]["expert"] == view.learned[1].expert.tolist()
    assert found["learned"][1]["probability"] == pytest.approx(view.learned[1].probability.tolist(), abs=1e-4)
    assert found["interaction"] == pytest.approx(view.interaction.tolist(), abs=1e-4)
    tokens = found["tokens"]
    assert [token["kind"] for token in tokens].count("image_in") == builder.seen_tokens
    words = [token["text"] for token in tokens if token["kind"] == "text"]
    assert {"cow", "image", "yes"} <= {word.strip() for word in words}
    assert words[0] == builder.tokenizer.bos_token


def test_a_picture_drawn_is_seen_by_the_tokens_it_was_made_of(
    client: TestClient, make_model: Callable[..., Any], builder: SequenceBuilder
) -> None:
    made = client.post("/v1/images/generations", json={"prompt": "a red cow", "seed": 4, "guidance_scale": 1, "n": 2}).json()
    codes = made["data"][1]["image_tokens"]
    model = make_model(ffn="ta_moe")
    assert (
        codes
        == draw_tokens(model, builder, image_jobs(builder, ["a red cow"], 2, 4, SamplingParams()), routing="label")[1].tolist()
    )
    body = {"model": "tiny", "messages": asked(None, "a red cow"), "drawn": codes}
    found = client.post("/v1/routing", json=body).json()
    view = view_request(model, collate([builder.generation("a red cow", codes)], 0))
    assert found["task"] == "t2i"
    assert [row["group"] for row in found["learned"]] == [route.group.tolist() for route in view.learned]
    assert found["interaction"] == pytest.approx(view.interaction.tolist(), abs=1e-4)
    assert [token["label"] for token in found["tokens"]] == [0] + [1] * (len(found["tokens"]) - 1)


def test_a_dense_model_routes_nothing(live: Any, data_url: str) -> None:
    body = {"model": "unified", "messages": asked(data_url, "What is it?"), "answer": "a cup"}
    found = httpx.post(f"{live.url}/v1/routing", json=body).json()
    assert (found["learned"], found["label"], found["groups"]) == ([], None, ["all"])
    assert len(found["interaction"]) == found["layers"]
    assert all(0 <= share <= 1 for share in found["interaction"])


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"messages": asked(None, "a"), "answer": "b", "drawn": [0] * 16}, 400, "two_answers"),
        ({"messages": asked("PICTURE", "a"), "drawn": [0] * 16}, 400, "invalid_image"),
        ({"messages": asked(None, "a"), "drawn": [0] * 15}, 400, "invalid_image_tokens"),
        ({"messages": asked(None, "a"), "drawn": [0] * 15 + [-1]}, 400, "invalid_image_tokens"),
        ({"messages": asked(None, "a"), "drawn": [0] * 15 + [1 << 40]}, 400, "invalid_image_tokens"),
        ({"messages": asked(None, "cow " * 200), "drawn": [0] * 16}, 400, "context_length_exceeded"),
        ({"messages": asked(None, "cow " * 200), "answer": "yes"}, 400, "context_length_exceeded"),
        ({"messages": asked(None, "a"), "answer": "<bos>"}, 400, "invalid_text"),
        ({"messages": [], "answer": "yes"}, 400, "too_short"),
        ({"messages": asked(None, "a"), "layers": 3}, 400, "extra_forbidden"),
        ({"messages": asked(None, "a"), "model": "other"}, 404, "model_not_found"),
    ],
)
def test_what_cannot_be_looked_at(client: TestClient, pictures: np.ndarray, body: dict[str, Any], status: int, code: str) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(one) for key, one in value.items()}
        if isinstance(value, list):
            return [filled(one) for one in value]
        return as_url(pictures[0]) if value == "PICTURE" else value

    response = client.post("/v1/routing", json={"model": "tiny", **filled(body)})
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_only_some_at_a_time(server: Server, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    viewer, go = server.viewer, Future[None]()
    assert viewer is not None
    sample = server.preparer.builder.generation("a cow", [0] * server.preparer.image_tokens)
    with monkeypatch.context() as patch:
        patch.setattr(viewer, "view", lambda *_: go.result())
        patch.setattr(viewer, "to_json", lambda *_: {})
        held = [viewer.begin(Task.T2I, sample) for _ in range(MOST)]
        refused = client.post("/v1/routing", json={"model": "tiny", "messages": asked(None, "a"), "answer": "b"})
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        go.set_result(None)
        assert [one.result(10) for one in held] == [{}] * MOST
    assert client.post("/v1/routing", json={"model": "tiny", "messages": asked(None, "a"), "answer": "b"}).status_code == 200
