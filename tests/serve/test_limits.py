"""Every limit is reached once: the status, the form of the error, and that it names what is too much."""

from __future__ import annotations

import asyncio
import base64
import io
import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from unidecouple.serve.limits import Limits
from waiting import until

SMALL = Limits(
    body_bytes=50_000,
    image_bytes=10_000,
    pixels=10_000,
    pictures=2,
    characters=200,
    side=500,
    aspect=20,
    n=2,
    queue=2,
    requests=8,
    uploads=2,
    read_seconds=0.5,
    drain_seconds=5,
)


@pytest.fixture(scope="module")
def small(serve: Any) -> Iterator[httpx.Client]:
    with serve(SMALL) as live, httpx.Client(base_url=live.url) as client:
        yield client


def bomb(width: int, height: int) -> bytes:
    """A PNG whose head says width x height pixels, and that has none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def shown(content: bytes, times: int = 1, kind: str = "png") -> dict[str, Any]:
    url = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return said([{"type": "image_url", "image_url": {"url": url}}] * times)


def said(content: Any, **more: Any) -> dict[str, Any]:
    return {"model": "unified", "messages": [{"role": "user", "content": content}], **more}


def encoded(form: str) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (20, 20)).save(content, form)
    return content.getvalue()


def animated(form: str) -> bytes:
    content = io.BytesIO()
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    frames[0].save(content, form, save_all=True, append_images=frames[1:])
    return content.getvalue()


CHATS: dict[str, tuple[dict[str, Any], str]] = {
    "pixels": (shown(bomb(12_000, 12_000)), "12000 x 12000 pixels"),
    "side": (shown(bomb(501, 10)), "501 x 10 pixels: a side has at most 500"),
    "aspect": (shown(bomb(10, 201)), "10 x 201 pixels: one side is more than 20 times"),
    "a flat image": (shown(bomb(500, 1)), "500 x 1"),
    "an animated PNG": (shown(animated("PNG")), "animated"),
    "an animated GIF": (shown(animated("GIF")), "animated"),
    "an animated WebP": (shown(animated("WEBP")), "animated"),
    "scans": (shown(encoded("JPEG") + b"\xff\xda" * 200), "scans"),
    "a truncated image": (shown(encoded("PNG")[:-30]), "image_url"),
    "base64 without its prefix": (shown(b"") | said([{"type": "image_url", "image_url": {"url": "iVBORw0KGgo" * 99}}]), "prefix"),
    "bytes": (shown(bytes(10_001)), "10,001 bytes"),
    "pictures": (shown(encoded("PNG"), 3), "more than 2 images"),
    "a format that is not for strangers": (shown(encoded("TIFF")), "no image in a known format"),
    "no image": (shown(b"hello"), "no image in a known format"),
    "an address": (said([{"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}]), "nothing is downloaded"),
    "a file of the server's": (said([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]), "nothing is downloaded"),
    "not base64": (said([{"type": "image_url", "image_url": {"url": "data:image/png,abc"}}]), "not base64"),
    "broken base64": (said([{"type": "image_url", "image_url": {"url": "data:image/png;base64,a"}}]), "base64"),
    "characters": (said("a " * 150), "300 characters"),
    "a special token": (said("what <image> is"), "special token"),
    "n": (said("what?", n=3), "n=3"),
    "tokens": (said("what?", max_tokens=2000), "2000 of answer"),
    "a field that is not supported": (said("what?", tools=[{"type": "function"}]), "tools"),
    "a temperature": (said("what?", temperature=-1), "temperature"),
    "an order of turns": (said("what?") | {"messages": [{"role": "assistant", "content": "no"}]}, "the user's is expected"),
    "no turn": (said("what?") | {"messages": []}, "messages"),
    "an empty turn": (said("  "), "empty turn"),
    "seed": (said("what?", seed=-1), "seed"),
}


@pytest.mark.parametrize("what", CHATS)
def test_a_chat_beyond_a_limit_is_a_400_that_says_so(small: httpx.Client, what: str) -> None:
    body, words = CHATS[what]
    reply = small.post("/v1/chat/completions", json=body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"n": 3}, "n=3"),
        ({"prompt": "a " * 150}, "300 characters"),
        ({"prompt": ""}, "prompt"),
        ({"negative_prompt": "a <image>"}, "special token"),
        ({"response_format": "url"}, "b64_json"),
        ({"size": "0x0"}, "64x64"),
    ],
)
def test_a_picture_beyond_a_limit_is_a_400_that_says_so(small: httpx.Client, body: dict[str, Any], words: str) -> None:
    reply = small.post("/v1/images/generations", json={"prompt": "a cow"} | body)
    assert reply.status_code == 400
    assert words in reply.json()["error"]["message"]


def test_a_special_token_names_its_message(small: httpx.Client) -> None:
    turns = [{"role": role, "content": words} for role, words in (("user", "a"), ("assistant", "<image>"), ("user", "b"))]
    error = small.post("/v1/chat/completions", json={"model": "unified", "messages": turns}).json()["error"]
    assert error["param"] == "messages.1"
    assert "<image>" in error["message"]


def test_open_bodies_are_bounded_together(serve: Any) -> None:
    with serve(Limits(body_bytes=50_000, open_bytes=60_000)) as live, httpx.Client(base_url=live.url) as client:
        url = httpx.URL(live.url)
        head = b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40000\r\n\r\n"
        with socket.create_connection((url.host, url.port), timeout=10) as slow:
            slow.sendall(head + bytes(39_999))
            body = {"prompt": "a cow", "user": "a" * 30_000}
            until(lambda: client.post("/v1/images/generations", json=body).status_code == 429)
        until(lambda: client.post("/v1/images/generations", json=body).status_code == 400)


def test_a_body_too_large_is_refused_before_it_is_read(small: httpx.Client) -> None:
    whole_body = small.post("/v1/chat/completions", content=bytes(50_001), headers={"Content-Type": "application/json"})
    pieces = small.post("/v1/chat/completions", content=iter([bytes(30_000)] * 2), headers={"Content-Type": "application/json"})
    for reply in (whole_body, pieces):
        assert reply.status_code == 413
        assert "50,000 bytes" in reply.json()["error"]["message"]


def test_a_body_that_does_not_come_is_given_up(small: httpx.Client) -> None:
    url = small.base_url
    with socket.create_connection((url.host, url.port), timeout=10) as slow:
        slow.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in slow.recv(1000)


def test_uploads_push_out_the_oldest(small: httpx.Client) -> None:
    kept = [small.post("/v1/files", files={"file": ("a.png", encoded("PNG"))}).json()["id"] for _ in range(3)]
    assert [small.get(f"/v1/files/{number}").status_code for number in kept] == [404, 200, 200]
    assert small.post("/v1/files", files={"file": ("a.png", b"no image")}).status_code == 400
    assert small.post("/v1/files", data={"file": "words"}).status_code == 400


def test_too_many_open_requests_are_told_to_come_again(serve: Any) -> None:
    async def crowd(url: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            asked = [client.post("/v1/images/generations", json={"prompt": "a cow"}) for _ in range(12)]
            return await asyncio.gather(*asked)

    with serve(Limits(queue=8, requests=2)) as live:
        replies = asyncio.run(crowd(live.url))
        assert {reply.status_code for reply in replies} == {200, 429}
        for reply in replies:
            assert reply.status_code == 200 or (
                reply.headers["Retry-After"] == "1" and reply.json()["error"]["type"] == "rate_limit_error"
            )
        assert httpx.get(f"{live.url}/v1/models").status_code == 200


def test_limits_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="pixels=0"):
        Limits(pixels=0)
    with pytest.raises(ValueError, match="drain_seconds=inf"):
        Limits(drain_seconds=float("inf"))
    with pytest.raises(ValueError, match="never fit"):
        Limits(n=9, queue=8)
