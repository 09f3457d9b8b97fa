"""Errors for faults that a run meets (another process that ended, a broken checkpoint file): the cause and the remedy."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

_LOST = re.compile(r"(closed|reset) by peer|[Bb]roken pipe|Connection refused|[Tt]imed out|pair closure|NCCL")
"""Wordings of gloo and NCCL, whose errors have no specific type."""


class LostProcessError(ConnectionError):
    """Another process of the run ended, or does not answer."""


@contextlib.contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Name the cause if a collective failed because another process is gone.

    Raises:
        LostProcessError: in place of torch's own error.
    """
    try:
        yield
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        reason = str(error).strip().splitlines()[0]
        raise LostProcessError(
            f"another process of this run ended or does not answer ({reason}). The cause is in its own output. What was saved is "
            "intact, and the same command resumes it"
        ) from error


@contextlib.contextmanager
def naming_broken_file(path: Path) -> Iterator[None]:
    """Name ``path``, a file of a checkpoint, in errors of reading it.

    Raises:
        ValueError: it is missing, cut off, or not what it should be.
    """
    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"cannot resume: {path} is missing or broken ({error}). Delete {path.parent} and run the command again: it goes on "
            "from the checkpoint before, or from the start"
        ) from error
