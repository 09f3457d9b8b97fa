"""A server on a loopback port, over the shipped base that does both tasks."""

from __future__ import annotations

import base64
import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pytest
import uvicorn
from PIL import Image

from unidecouple.generate.engine import Engine
from unidecouple.serve.api import Server
from unidecouple.serve.limits import Limits
from unidecouple.serve.run import uvicorn_server
from waiting import until

MOST = 4
"""Answers, and images, at a time."""


@dataclass
class Live:
    """A server that listens."""

    server: Server
    uvicorn: uvicorn.Server
    url: str

    @property
    def jobs(self) -> int:
        """That wait or run."""
        return sum(task_queue.waiting + task_queue.running for task_queue in self.server.scheduler.task_queues.values())


Serve = Callable[..., AbstractContextManager[Live]]
"""``serve(limits=None, api_key=None)``."""


@contextlib.contextmanager
def listen(limits: Limits | None = None, api_key: str | None = None) -> Iterator[Live]:
    server = Server(Engine.load("unified", max_batch_size=MOST), "unified", limits, api_key)
    http = uvicorn_server(server, "127.0.0.1", 0)
    thread = threading.Thread(target=http.run)
    thread.start()
    until(lambda: http.started)
    port = http.servers[0].sockets[0].getsockname()[1]
    try:
        yield Live(server, http, f"http://127.0.0.1:{port}")
    finally:
        http.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
        assert not server.scheduler.alive


@pytest.fixture(scope="session")
def serve() -> Serve:
    return listen


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    """One with the usual limits, for tests that leave nothing behind."""
    with listen() as live:
        yield live


@pytest.fixture(scope="session")
def png() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (80, 40), "red").save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="session")
def data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
