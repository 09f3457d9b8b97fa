"""Clients that vanish, a queue that is full, a model that fails, a shutdown under load: nothing hangs, and nothing is left."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import httpx
import pytest

from unidecouple.batch import Task
from unidecouple.serve.limits import Limits
from waiting import until


class Slow:
    """A step that takes its time, and fails on demand."""

    def __init__(self, worker: Any) -> None:
        self.step, self.seconds, self.error = worker.step, 0.05, None
        worker.step = self

    def __call__(self) -> Any:
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return self.step()


def posted(path: str, body: dict[str, Any]) -> bytes:
    """A request as it goes over the wire."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def leave_early(live: Any, path: str, body: dict[str, Any]) -> None:
    """Send a request and go once its jobs run."""
    url = httpx.URL(live.url)
    with socket.create_connection((url.host, url.port)) as leaving:
        leaving.sendall(posted(path, body))
        until(lambda: live.jobs > 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 6])
def test_a_client_that_vanishes_frees_its_places(serve: Any, stream: bool, n: int) -> None:
    with serve() as live:
        slow = Slow(live.server.scheduler.task_queues[Task.MMU].generator)
        body = {
            "model": "unified",
            "messages": [{"role": "user", "content": "What?"}],
            "n": n,
            "stream": stream,
            "temperature": 2.0,
        }
        leave_early(live, "/v1/chat/completions", body)
        until(lambda: live.jobs == 0, 2.0)
        slow.seconds = 0
        text = httpx.get(f"{live.url}/metrics").text
        assert f'unidecouple_jobs_total{{how="cancelled",task="mmu"}} {n}.0' in text
        assert live.server.scheduler.engine.answers.answers == []


@pytest.mark.parametrize("more", [{}, {"stream": True, "partial_images": 3}], ids=["whole", "stream"])
def test_a_painter_nobody_waits_for_stops(serve: Any, more: dict[str, Any]) -> None:
    with serve() as live:
        Slow(live.server.scheduler.task_queues[Task.T2I].generator)
        leave_early(live, "/v1/images/generations", {"prompt": "a cow", "n": 6, **more})
        until(lambda: live.jobs == 0, 0.5)  # sixteen steps would be 0.8 s, for four of the six


def test_a_full_queue_is_a_429_that_says_when(serve: Any) -> None:
    with serve(Limits(queue=2, n=2)) as live:
        slow = Slow(live.server.scheduler.task_queues[Task.T2I].generator)
        slow.seconds = 0.2
        replies: list[httpx.Response] = []

        def ask() -> None:
            replies.append(httpx.post(f"{live.url}/v1/images/generations", json={"prompt": "a cow"}, timeout=30))

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        until(lambda: any(reply.status_code == 429 for reply in replies))
        slow.seconds = 0
        for thread in threads:
            thread.join(30)
        statuses = [reply.status_code for reply in replies]
        assert statuses.count(200) >= 2  # those that wait while the first runs
        refused = [reply for reply in replies if reply.status_code == 429]
        assert len(refused) + statuses.count(200) == 12
        assert all(1 <= int(reply.headers["Retry-After"]) <= 60 for reply in refused)
        assert refused[0].json()["error"]["code"] == "queue_full"


def test_a_fault_of_the_model_is_a_500_and_the_next_request_works(serve: Any) -> None:
    asked = {"model": "unified", "messages": [{"role": "user", "content": "What?"}]}
    with serve() as live:
        for stream in (False, True):
            Slow(live.server.scheduler.task_queues[Task.MMU].generator).error = RuntimeError("injected")
            reply = httpx.post(f"{live.url}/v1/chat/completions", json={**asked, "stream": stream})
            text = reply.text.split("data: ")[-1] if stream else reply.text
            assert json.loads(text)["error"] == {
                "message": "the model failed on this request (RuntimeError); see the server's log",
                "type": "server_error",
                "param": None,
                "code": "fault",
            }
            assert reply.status_code == (200 if stream else 500)
            assert httpx.post(f"{live.url}/v1/chat/completions", json=asked).status_code == 200
        assert httpx.get(f"{live.url}/health").status_code == 200


def test_a_broken_model_makes_health_fail(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> Any:
        raise MemoryError("injected")

    with serve() as live:
        task_queue = live.server.scheduler.task_queues[Task.T2I]
        monkeypatch.setattr(task_queue.generator, "renew", never)
        Slow(task_queue.generator).error = RuntimeError("injected")
        assert httpx.post(f"{live.url}/v1/images/generations", json={"prompt": "a cow"}).status_code == 500
        assert httpx.get(f"{live.url}/health").status_code == 503
        reply = httpx.post(f"{live.url}/v1/images/generations", json={"prompt": "a cow"})
        assert reply.status_code == 503
        assert "restart" in reply.json()["error"]["message"]


ABOUT = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}


def test_text_waits_for_no_picture_and_a_picture_of_a_client_that_left_is_not_read(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr("unidecouple.serve.api.from_address", lambda url, *rest: read.append(url))
    with serve() as live:
        url, go = httpx.URL(live.url), threading.Event()
        pictures, decoding = live.server._pictures, []
        pictures.submit(go.wait, 30)
        submit = pictures.submit
        monkeypatch.setattr(pictures, "submit", lambda *work: (decoding.append(submit(*work)), decoding[-1])[1])
        try:
            with socket.create_connection((url.host, url.port)) as leaving:
                leaving.sendall(posted("/v1/chat/completions", {"model": "unified", "messages": [ABOUT]}))
                until(lambda: len(decoding) == 1)
                asked = {"model": "unified", "messages": [{"role": "user", "content": "What?"}], "max_tokens": 1}
                assert httpx.post(f"{live.url}/v1/chat/completions", json=asked, timeout=60).status_code == 200
                assert not decoding[0].done()
            until(decoding[0].cancelled)
        finally:
            go.set()
        pictures.submit(int).result(10)
        assert read == []


HUNG = """
import sys, time
from unidecouple.batch import Task
from unidecouple.generate.engine import Engine
from unidecouple.serve.api import Server
from unidecouple.serve.limits import Limits
from unidecouple.serve.run import uvicorn_server
server = Server(Engine.load("unified", max_batch_size=1), "unified", Limits(drain_seconds=0.5), with_page=False)
server.scheduler.task_queues[Task.T2I].generator.step = lambda: (print("hung", flush=True), time.sleep(60))
uvicorn_server(server, "127.0.0.1", int(sys.argv[1])).run()
"""


@pytest.mark.slow
def test_a_step_that_never_ends_does_not_hold_up_the_shutdown() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    child = subprocess.Popen([sys.executable, "-c", HUNG, str(port)], stdout=subprocess.PIPE, text=True)
    try:

        def sent() -> bool:
            assert child.poll() is None
            try:
                client.connect(("127.0.0.1", port))
            except ConnectionRefusedError:
                return False
            client.sendall(posted("/v1/images/generations", {"prompt": "a cow"}))
            return True

        with socket.socket() as client:
            until(sent, 60)
            assert child.stdout is not None
            assert child.stdout.readline() == "hung\n"
            child.send_signal(signal.SIGTERM)
            assert child.wait(10) == 0
    finally:
        child.kill()
        child.communicate()


@pytest.mark.slow
def test_sigterm_finishes_what_runs_and_refuses_new(tmp_path: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "unidecouple", "serve", "unified", "--port", str(port), "--batch-size", "4"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        url = f"http://127.0.0.1:{port}"

        def listens() -> bool:
            assert child.poll() is None
            with socket.socket() as trial:
                return trial.connect_ex(("127.0.0.1", port)) == 0

        until(listens, 60)
        statuses: list[int | None] = []
        kept = httpx.Client(base_url=url, timeout=30)
        assert kept.get("/health").status_code == 200

        def ask() -> None:
            try:
                statuses.append(
                    httpx.post(f"{url}/v1/images/generations", json={"prompt": "a cow", "n": 4}, timeout=30).status_code
                )
            except httpx.TransportError:
                statuses.append(None)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        until(lambda: sum(kept.get("/health").json()["jobs"]["t2i"].values()) >= 20)
        child.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(30)
        out, err = child.communicate(timeout=30)
        assert child.returncode == 0, err
        assert "serving 'unified'" in out
        assert statuses.count(200) >= 5  # those that were admitted
        assert set(statuses) <= {200, 503, None}
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
        kept.close()
    finally:
        child.kill()
        child.wait()
