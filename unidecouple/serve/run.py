"""A server on a port, until a signal: then it accepts nothing new, finishes running work, and ends."""

from __future__ import annotations

import logging
import math
import os
import threading
from types import FrameType

import uvicorn

from unidecouple.serve.api import Server
from unidecouple.serve.limits import LAST_STEP_SECONDS


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._served = server

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On the signal itself, so that requests on connections that are open are refused, too.

        Python cannot stop a thread within a step of the model, so the process ends ``LAST_STEP_SECONDS`` after the limits' time.
        """
        self._served.refuse()
        if not self.should_exit:
            end = threading.Timer(self._served.limits.drain_seconds + LAST_STEP_SECONDS, _end)
            end.daemon = True
            end.start()
        super().handle_exit(sig, frame)


def _end() -> None:
    logging.getLogger(__name__).warning("the time to finish is over; running requests are dropped")
    os._exit(0)


def uvicorn_server(server: Server, host: str, port: int) -> uvicorn.Server:
    """The HTTP server of ``server``; port 0 is any free one."""
    config = uvicorn.Config(
        server.app,
        host=host,
        port=port,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=math.ceil(server.limits.drain_seconds),
    )
    return _Uvicorn(config, server)
