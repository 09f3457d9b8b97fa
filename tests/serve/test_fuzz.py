"""Malformed images, bodies and requests by the thousand: 4xx, never 5xx, and the server goes on."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from PIL import Image
from schemathesis.generation.case import Case
from starlette.testclient import TestClient

from unidecouple.generate.engine import Engine
from unidecouple.serve.api import Server
from unidecouple.serve.limits import Limits

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server() -> Server:
    return Server(Engine.load("unified", max_batch_size=4), "unified", Limits(body_bytes=200_000, pixels=1_000_000))


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[TestClient]:
    with TestClient(server.app, "http://localhost", raise_server_exceptions=False) as client:
        yield client


def originals() -> list[bytes]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 15, 3), dtype=np.uint8))
    found = []
    for form, more in (
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {}),
        ("GIF", {}),
        ("TIFF", {}),
        ("BMP", {}),
    ):
        content = io.BytesIO()
        noise.save(content, form, **more)
        found.append(content.getvalue())
    return found


def damaged(content: bytes, chance: random.Random) -> bytes:
    """One of the ways in which a file goes wrong."""
    kind = chance.randrange(4)
    if kind == 0:
        return content[: chance.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(chance.randint(1, 20)):
        changed[chance.randrange(min(len(changed), 60) if kind == 1 else len(changed))] = chance.randrange(256)
    return bytes(changed) if kind != 3 else chance.randbytes(chance.randint(1, 99)) + bytes(changed)


def asking(content: bytes) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    picture = {"type": "image_url", "image_url": {"url": url}}
    return {"model": "unified", "messages": [{"role": "user", "content": [picture]}], "max_tokens": 1}


@pytest.mark.slow
def test_damaged_pictures(client: TestClient) -> None:
    """What PIL reads all the same is answered; what it does not is a 400."""
    chance, whole = random.Random(0), originals()
    statuses = [client.post(CHAT, json=asking(damaged(whole[i % len(whole)], chance))).status_code for i in range(700)]
    assert set(statuses) == {200, 400}
    assert statuses.count(400) > 300


VALUES = [
    None,
    True,
    -1,
    0,
    1e308,
    10**30,
    "",
    "a",
    "\x00",
    "\ud800",
    "🂡" * 50,
    [],
    [[]],
    {},
    {"a": 1},
    [None],
    "data:,",
    "file-x",
    float("nan"),
]
VALID = {
    CHAT: {
        "model": "unified",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": "x"}}]}
        ],
        "max_tokens": 1,
        "temperature": 0,
        "seed": 0,
        "n": 1,
        "stream": False,
        "stop": ["a", "b"],
    },
    "/v1/images/generations": {
        "model": "unified",
        "prompt": "a cow",
        "n": 1,
        "size": "auto",
        "seed": 0,
        "guidance_scale": 5.0,
        "stream": True,
        "partial_images": 1,
    },
}


def spots(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything in a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from spots(one, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("route", VALID)
def test_every_field_with_every_wrong_value(client: TestClient, route: str) -> None:
    """570 bodies on the two routes; a few of them are right."""
    statuses = []
    for path in spots(VALID[route]):
        for new in VALUES:
            body = json.dumps(replaced(VALID[route], path, new))
            reply = client.post(route, content=body, headers={"Content-Type": "application/json"})
            assert reply.status_code < 500, (body, reply.text)
            statuses.append(reply.status_code)
    assert set(statuses) <= {200, 400, 404}
    assert statuses.count(200) < len(statuses) / 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[" * 100_000,
        b'{"model": "\xff"}',
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"a": 1, "a": 2}',
        b"\x00" * 100,
        b'{"\\ud800": 1}',
        json.dumps({"model": "unified", "messages": [{"role": "user", "content": "a"}] * 300}).encode(),
    ],
)
def test_bodies_that_are_no_requests(client: TestClient, body: bytes) -> None:
    for route in (*VALID, "/v1/files", "/v1/images/edits"):
        for kind in ("application/json", "text/plain", "multipart/form-data", "multipart/form-data; boundary=x", "\xff"):
            reply = client.post(route, content=body, headers={"Content-Type": kind.encode("latin-1")})
            assert 400 <= reply.status_code < 500, reply.text
            assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_paths_and_methods_that_do_not_exist(client: TestClient) -> None:
    for path in ("/v1", "/v1/models/%00", "/v1/files/../../etc/passwd", "/v1/chat", "/%ff"):
        assert client.get(path).json()["error"]["type"] == "not_found_error"
    assert client.delete(CHAT).status_code == 405


@pytest.mark.slow
@pytest.mark.parametrize(
    "route",
    [
        "/v1/chat/completions",
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/routing",
        "/v1/files",
        "/v1/files/{file_id}",
        "/v1/models/{model}",
    ],
)
def test_requests_from_the_servers_own_description(client: TestClient, server: Server, route: str) -> None:
    schema = schemathesis.openapi.from_dict(server.app.openapi())
    method = "GET" if "{" in route else "POST"

    @given(case=schema[route][method].as_strategy())
    @settings(
        max_examples=20,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Case) -> None:
        sent = case.as_transport_kwargs(base_url="http://localhost")
        sent = {name: value for name, value in sent.items() if value is not None and name != "cookies"}
        try:
            request = client.build_request(**sent)
            request.read()
        except (ValueError, TypeError, AttributeError):
            return  # what the client itself cannot send
        reply = client.send(request)
        assert reply.status_code in (200, 400, 404, 405, 413), reply.text

    ask()


def test_it_still_works_after_all_that(client: TestClient, server: Server) -> None:
    assert client.post("/v1/images/generations", json={"prompt": "a cow"}).status_code == 200
    assert all(task_queue.waiting + task_queue.running == 0 for task_queue in server.scheduler.task_queues.values())
