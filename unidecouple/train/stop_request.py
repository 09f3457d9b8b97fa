"""A request to end a command: Ctrl-C, or the signal that a scheduler sends before it kills (Slurm, Kubernetes, systemd)."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_ECHO = 2.0
"""Seconds in which a signal that comes again is the same request: torchrun and ``compare`` pass on what the terminal sent, too."""


class InterruptedRunError(RuntimeError):
    """The run was asked to stop; it was saved after a whole step and can be resumed."""


class StopRequest(threading.Event):
    """An event that signals set. Outside ``deferred_signals`` they also raise ``KeyboardInterrupt`` at once.

    A second SIGINT ends the process at once, without any cleaning up. SIGTERM and SIGHUP may come several times.

    Attributes:
        number: the signal that came first; None before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.number: int | None = None
        self._since = 0.0
        self._deferring = False

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number, as shells count: 130 after Ctrl-C, 143 after SIGTERM or where a peer was asked to stop."""
        return 128 + (signal.SIGTERM if self.number is None else self.number)

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle the signals in the block. SIGHUP stays ignored under nohup; outside the main thread nothing is handled."""
        before = {}
        try:
            for name in _SIGNALS if threading.current_thread() is threading.main_thread() else ():
                number = getattr(signal, name, None)  # Windows has no SIGHUP
                handler = None if number is None else signal.getsignal(number)
                if number is not None and handler is not None and (name != "SIGHUP" or handler != signal.SIG_IGN):
                    before[number] = signal.signal(number, self._received)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _received(self, number: int, frame: FrameType | None) -> None:
        again = time.monotonic() - self._since > _ECHO
        if self.is_set():
            if number == signal.SIGINT and (again or "TORCHELASTIC_RUN_ID" not in os.environ):
                os._exit(128 + number)
            if self._deferring or not again:
                return
        self.number, self._since = number if self.number is None else self.number, time.monotonic()
        self.set()
        if not self._deferring:
            raise KeyboardInterrupt
        if os.environ.get("RANK", "0") == "0":
            line = f"unidecouple: {signal.Signals(number).name}: saving after this step (Ctrl-C again ends at once)\n"
            os.write(2, line.encode())  # print may be what the signal interrupted


@contextmanager
def deferred_signals(stop: threading.Event) -> Iterator[None]:
    """In the block signals only set ``stop``, if it is a ``StopRequest``; the block looks at it and ends in good order."""
    if not isinstance(stop, StopRequest):
        yield
        return
    stop._deferring = True
    try:
        yield
    finally:
        stop._deferring = False
