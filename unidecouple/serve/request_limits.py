"""Checks before every route: the API key, the number of open requests, the size of a body and the time it takes."""

from __future__ import annotations

import asyncio
import hmac
from typing import TYPE_CHECKING

from unidecouple.serve.errors import ApiError, as_response
from unidecouple.serve.limits import Limits
from unidecouple.serve.metrics import Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OPEN = {"/health", "/"}
"""Open without a key: health checks of supervisors, and the page, which asks for the key."""


class RequestLimits:
    """ASGI middleware. It reads a body whole before the route starts, so that what follows in ``receive`` is the disconnect.

    Args:
        app: what it guards.
        limits: of requests.
        metrics: counts responses.
        api_key: that ``Authorization: Bearer`` must bear; None lets everyone in.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, api_key: str | None) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self._key = None if api_key is None else f"Bearer {api_key}".encode()
        self._open = self._open_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's message, as ASGI calls it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")  # FastAPI's, so that paths somebody made up are not kept
                self.metrics.responses.labels(getattr(route, "path", "-"), str(message["status"])).inc()
            await send(message)

        self._open += 1
        body = bytearray()
        try:
            await self._serve(scope, receive, counted, body)
        finally:
            self._open -= 1
            self._open_bytes -= len(body)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, body: bytearray) -> None:
        try:
            await self._admit(scope, receive, body)
        except ApiError as error:
            headers = {"Retry-After": "1"} if error.status == 429 else {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
            headers["Connection"] = "close"  # what was not read of the body is not read at all
            await as_response(error.status, error.message, error.param, error.code, headers)(scope, receive, send)
            return
        except ConnectionError:
            return
        read = False

        async def replay() -> Message:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self.app(scope, replay, send)

    async def _admit(self, scope: Scope, receive: Receive, body: bytearray) -> None:
        headers = dict(scope["headers"])
        if self._key is not None and scope["path"] not in _OPEN:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._key):
                raise ApiError(401, "give the API key: Authorization: Bearer KEY", code="invalid_api_key")
        if self._open > self.limits.requests and scope["path"] not in _OPEN:
            raise ApiError(429, f"more than {self.limits.requests} requests are open; try again", code="too_many_requests")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self.limits.body_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self.limits.read_seconds):
                await self._read(receive, body)
        except TimeoutError as error:
            raise ApiError(408, f"the body was not there after {self.limits.read_seconds:g} s", code="timeout") from error

    async def _read(self, receive: Receive, body: bytearray) -> None:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError
            piece, more = message.get("body", b""), message.get("more_body", False)
            body += piece
            self._open_bytes += len(piece)
            if len(body) > self.limits.body_bytes:
                raise self._too_large()
            if self._open_bytes > self.limits.open_bytes:
                full = f"the bodies of open requests are more than {self.limits.open_bytes:,} bytes; try again"
                raise ApiError(429, full, code="too_many_requests")

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self.limits.body_bytes:,} bytes", code="body_too_large")
