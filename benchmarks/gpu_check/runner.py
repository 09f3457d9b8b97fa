"""Runs the parts of the GPU check, each in a process of its own with a limit: a hang or a crash ends one part only.

Standard library only: this process never loads torch on a GPU, so that each part starts with a fresh CUDA context.
"""

from __future__ import annotations

import multiprocessing
import os
import pkgutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from benchmarks.gpu_check.findings import FILE, Findings, write_summary

LOG = "log.txt"
ERRORS, NO_DEVICE = 1, 3
"""Exit codes of a part: it recorded errors; there is no CUDA device."""


class StoppedError(BaseException):
    """A signal, or the limit of the whole check, asked to stop."""


@dataclass(frozen=True)
class Part:
    """One part of the check.

    Attributes:
        name: in findings, and for ``--only``.
        seconds: its limit.
        target: "module:function"; the function takes a ``Check``.
    """

    name: str
    seconds: float
    target: str


@dataclass(frozen=True)
class Options:
    """How the parts run.

    Attributes:
        folder: gets the findings, the summary and the log.
        device: "cuda" or "cpu".
        tiny: sizes that a CPU can do; limits are then eight times as long, since a CPU may be busy.
        budget: seconds for all parts.
        limit: seconds after which everything ends, in any case.
    """

    folder: Path
    device: str = "cuda"
    tiny: bool = False
    budget: float = 540
    limit: float = 590

    @property
    def scale(self) -> int:
        """Factor on all limits."""
        return 8 if self.tiny else 1

    def findings(self, part: str) -> Findings:
        """For the findings of ``part``."""
        return Findings(self.folder / FILE, part, self.device != "cpu" and not self.tiny)


def run_parts(parts: Sequence[Part], options: Options) -> int:
    """Run ``parts`` in order and return the exit code: 0 if each ended without an error, 1 otherwise, 3 without a device.

    A part starts if at least half of its limit is left. A signal ends the running part and the check; findings so far are kept.
    """
    main, end, code = options.findings("main"), time.monotonic() + options.budget * options.scale, 0
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        with _stopped_by_signals(round(options.limit * options.scale)):
            for part in parts:
                seconds = part.seconds * options.scale
                limit = min(seconds, end - time.monotonic())
                if limit < seconds / 2:
                    code = ERRORS
                    main.add(f"{part.name}: left out", error=f"{max(0.0, limit):.0f} of its {seconds:.0f} s were left")
                    continue
                start = time.monotonic()
                ended = _run(part, limit, options)
                error = {} if ended == 0 else {"error": _reason(ended, limit)}
                main.add(part.name, round(time.monotonic() - start, 1), "s", None, **error)
                write_summary(options.folder)
                if ended == NO_DEVICE:
                    return NO_DEVICE
                code = code if ended == 0 else ERRORS
    except StoppedError as stopped:
        main.add("stopped", error=str(stopped))
        code = ERRORS
    finally:
        write_summary(options.folder)
    return code


def _run(part: Part, limit: float, options: Options) -> int | None:
    """Exit code of ``part``, minus a signal's number, or None if it was ended at its limit."""
    context = multiprocessing.get_context("fork" if options.device == "cpu" else "spawn")  # CUDA does not survive a fork
    process: BaseProcess = context.Process(target=_child, args=(part, options))  # type: ignore[attr-defined]
    process.start()
    try:
        process.join(limit)
        return process.exitcode
    finally:
        _end(process)


def _end(process: BaseProcess) -> None:
    """Kill ``process`` and what it started."""
    assert process.pid is not None
    with suppress(ProcessLookupError):  # it ended by itself
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _child(part: Part, options: Options) -> None:
    """Process of one part: a group of its own, its output in the log."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    with (options.folder / LOG).open("a", encoding="utf-8") as log:
        log.write(f"===== {part.name}\n")
        log.flush()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w", buffering=1, encoding="utf-8") for n in (1, 2))
    from benchmarks.gpu_check.check import Check  # loads torch

    check = Check(options.findings(part.name), options.device, options.tiny)
    if not check.there():
        sys.exit(NO_DEVICE)
    with check.attempt(part.name):
        pkgutil.resolve_name(part.target)(check)
    sys.exit(ERRORS if check.errors else 0)


def _reason(code: int | None, limit: float) -> str:
    if code is None:
        return f"ended at its limit of {limit:.0f} s; its findings up to then are kept"
    if code == NO_DEVICE:
        return "torch finds no CUDA device; --tiny --device cpu goes through all parts on a CPU"
    return f"ended by signal {-code}" if code < 0 else f"exit code {code}: see its errors, and {LOG}"


@contextmanager
def _stopped_by_signals(seconds: int) -> Iterator[None]:
    """Raise ``StoppedError`` at SIGTERM or Ctrl-C, and after ``seconds``."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise StoppedError("the limit of the whole check" if number == signal.SIGALRM else signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
