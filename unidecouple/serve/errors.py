"""Errors in OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from unidecouple.serve.scheduler import ClosedError
from unidecouple.serve.task_queue import FaultError, QueueFullError

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that cannot be served.

    Attributes:
        status: of HTTP.
        message: what is wrong and what to do.
        param: the field of the body that it is about.
        code: machine-readable.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


def as_response(
    status: int, message: str, param: str | None = None, code: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error as OpenAI words it. Characters that are no Unicode (lone surrogates of a request) become question marks."""
    kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": _clean(message), "type": kind, "param": param if param is None else _clean(param), "code": code}
    return JSONResponse({"error": error}, status, headers=dict(headers or {}))


def of_exception(error: BaseException) -> JSONResponse:
    """The response for what a job ended with."""
    if isinstance(error, ApiError):
        return as_response(error.status, error.message, error.param, error.code)
    if isinstance(error, QueueFullError):
        return as_response(429, str(error), code="queue_full", headers={"Retry-After": str(error.seconds)})
    if isinstance(error, ClosedError):
        return as_response(503, str(error), code="unavailable")
    if isinstance(error, FaultError):
        return as_response(500, str(error), code="fault")
    return as_response(500, "a fault of the server; see its log", code="fault")


def add_handlers(app: FastAPI) -> None:
    """Have every error of ``app`` answered in this form."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        return of_exception(error)

    async def plain(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return as_response(error.status_code, str(error.detail), headers=error.headers)

    for kind in (ApiError, QueueFullError, ClosedError, FaultError, Exception):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(HTTPException, plain)


def _clean(text: str) -> str:
    return text[:1000].encode("utf-8", "replace").decode()
