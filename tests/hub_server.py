"""A Hugging Face Hub of one's own on this machine: as much of its HTTP interface as downloads of a model use."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves ``models`` (id -> folder); ``gated`` ids are refused. ``asked`` lists "METHOD path"."""

    daemon_threads = True

    def __init__(self, models: dict[str, Path], gated: frozenset[str] = frozenset()) -> None:
        self.models, self.gated, self.asked = models, gated, list[str]()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *words: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        parts = path.removeprefix("/api/models").strip("/").split("/")
        name, rest = "/".join(parts[:2]), parts[2:]
        folder = self.server.models.get(name)
        if name in self.server.gated:
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"}, body)
        if folder is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        files = sorted(file.name for file in folder.iterdir())
        if path.startswith("/api/models") and rest[:1] == ["tree"]:
            paths = [folder / file for file in files]
            rows = [{"type": "file", "path": one.name, "size": one.stat().st_size, "oid": _etag(one)} for one in paths]
            return self._send(200, json.dumps(rows).encode(), {}, body)
        if path.startswith("/api/models"):
            said = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
            return self._send(200, json.dumps(said).encode(), {}, body)
        if rest[:1] != ["resolve"] or rest[-1] not in files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
        file = folder / rest[-1]
        return self._send(200, file.read_bytes(), {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT}, body)

    def _send(self, code: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextlib.contextmanager
def serving(models: dict[str, Path], gated: frozenset[str] = frozenset()) -> Iterator[Hub]:
    hub = Hub(models, gated)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
