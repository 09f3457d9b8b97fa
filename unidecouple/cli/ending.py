"""How a command ends: its exit code, and one line on standard error in place of a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from unidecouple import __version__
from unidecouple.cli.command import FAILED
from unidecouple.train.stop_request import InterruptedRunError, StopRequest

BROKEN_PIPE = 141
"""128 plus SIGPIPE, as shells count: the reader of our output is gone (``| head``)."""
DEBUG = "UNIDECOUPLE_DEBUG"
"""Environment variable: if set, errors show their traceback."""
_NO_MEMORY = ("can't allocate memory", "not enough memory", "CUDA out of memory")
"""How torch words it where its error has no type of its own."""
_LONGEST = 400


def run_command(command: Callable[[], int], stop: StopRequest, output: Callable[[], Path | None]) -> int:
    """Run ``command`` and return its exit code; whatever it raises becomes one line on standard error.

    Args:
        command: returns an exit code.
        stop: holds the signal that interrupted the command, if one did.
        output: the folder that the command writes to, if it has one: the place for the traceback of an unexpected error.
    """
    try:
        code = command()
        if sys.stdout is not None:  # None: the caller closed it
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last line of defence
        if os.environ.get(DEBUG, "0") != "0":
            traceback.print_exc()
        code = _report(error, stop, output)
        if os.environ.get("WORLD_SIZE", "1") != "1":
            _leave(code)  # before ``error`` frees the process group, whose destructor may wait for ever for a peer that is gone
    return code


def _report(error: BaseException, stop: StopRequest, output: Callable[[], Path | None]) -> int:
    """Print what ``error`` means to the user; returns the exit code."""
    if isinstance(error, BrokenPipeError) and error.filename is None:
        _discard_output()
        return BROKEN_PIPE
    if isinstance(error, InterruptedRunError):
        return _print(f"{error}. The same command resumes it", stop.exit_code)
    if isinstance(error, KeyboardInterrupt) or stop.is_set():  # some libraries turn the interruption of an import into an error
        return _print(
            "interrupted; the same command starts again, or resumes what can be resumed", stop.exit_code if stop.number else 130
        )
    unexpected = isinstance(error, UnicodeError | json.JSONDecodeError | ZeroDivisionError)  # they name no file and no remedy
    if isinstance(error, ValueError | OSError | ArithmeticError) and not unexpected:
        return _print(_expected(error), FAILED)
    where = _write_log(error, output)
    if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
        return _print(f"out of memory{where}. Use a smaller batch or model, or a machine with more memory", FAILED)
    first = next(iter(str(error).splitlines()), "")[:_LONGEST]
    what = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return _print(f"unexpected error: {what}{where}. Please report it with that traceback; {DEBUG}=1 prints it here", FAILED)


def _expected(error: Exception) -> str:
    """The system's errors without their number, the file first."""
    if isinstance(error, OSError) and error.strerror and isinstance(error.filename, str | os.PathLike):
        return f"{os.fspath(error.filename)}: {error.strerror.lower()}"
    return str(error) or type(error).__name__


def _print(line: str, code: int) -> int:
    with contextlib.suppress(OSError):
        print(f"unidecouple: {line}", file=sys.stderr, flush=True)
    return code


def _write_log(error: BaseException, output: Callable[[], Path | None]) -> str:
    """Write the traceback to a file; returns where it is, in words.

    It goes to the command's output folder if something is there already: an empty folder must stay one that a command may fill.
    """
    torch = sys.modules.get("torch")
    versions = f"unidecouple {__version__}, torch {getattr(torch, '__version__', 'not loaded')}, Python {platform.python_version()}"
    with contextlib.suppress(Exception):  # no memory, no disk: the line on standard error is all there is
        text = f"{versions}, {platform.platform()}\n\n{''.join(traceback.format_exception(error))}"
        folder = output()
        used = folder is not None and folder.is_dir() and any(folder.iterdir())
        for place in (folder, tempfile.gettempdir()) if used else (tempfile.gettempdir(),):
            with contextlib.suppress(OSError):
                handle, name = tempfile.mkstemp(".log", "unidecouple-error-", place)
                with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(text)
                return f" (traceback: {name})"
    return ""


def _discard_output() -> None:
    """Send what is still in the buffer of standard output nowhere, so that the interpreter's end does not fail on it."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)
