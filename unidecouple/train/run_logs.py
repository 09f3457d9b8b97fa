"""The logs that a run adds lines to: read after a kill, which may have cut the last line, and shortened when steps run again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from unidecouple.files import write_bytes_atomic

METRICS: Final = "metrics.jsonl"
SCORES: Final = "scores.jsonl"
ROUTING: Final = "routing.jsonl"
LOGS: Final[Mapping[str, Mapping[str, type | tuple[type, ...]]]] = {
    METRICS: {"step": int},
    SCORES: {"step": int, "benchmark": str, "metric": str, "value": (int, float)},
    ROUTING: {"step": int, "layers": list},
}
"""Each log and the keys that its lines must have. Other keys are left alone."""


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log, oldest first; a cut last line and blank lines are passed over. Empty where there is no file.

    Raises:
        ValueError: another line is no record of this log; with its number and the remedy.
    """
    return [record for _, record in _lines(path)[0]]


def cut_logs_after(folder: Path, step: int, say: Callable[[str], None]) -> None:
    """Drop the lines past ``step`` from all logs in ``folder``, since those steps run again; a log without lines is deleted.

    Raises:
        ValueError: as ``read_log``.
    """
    for name in LOGS:
        path = folder / name
        if not path.is_file():
            continue
        lines, cut = _lines(path)
        if cut and not lines and step > 0:  # more than one write can have cut
            raise ValueError(f"{path} has no readable line; bring it back, or delete it to go on without its records")
        if cut:
            say(f"{path}: dropped its last line, which was cut")
        kept = [text for text, record in lines if record["step"] <= step]
        if kept:
            write_bytes_atomic(path, b"".join(text + b"\n" for text in kept))
        else:
            path.unlink()


def _lines(path: Path) -> tuple[list[tuple[bytes, dict[str, Any]]], bool]:
    """The lines of a log with their records, and whether a cut last one was left out."""
    texts = path.read_bytes().split(b"\n") if path.is_file() else []
    numbered = [(number, text) for number, text in enumerate(texts, start=1) if text.strip()]
    found = []
    for number, text in numbered:
        record = _record(text, LOGS[path.name])
        if isinstance(record, dict):
            found.append((text, record))
        elif number == numbered[-1][0]:
            return found, True
        else:
            raise ValueError(f"{path}:{number}: {record}; delete that line, or the whole file, and run the command again")
    return found, False


def _record(text: bytes, wanted: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any] | str:
    """The record of a line, or what is wrong with it."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):  # of JSON or of UTF-8
        return "no valid JSON"
    if not isinstance(record, dict):
        return "no JSON object"
    wrong = [key for key, kind in wanted.items() if not isinstance(record.get(key), kind) or isinstance(record.get(key), bool)]
    return f"no usable {wrong[0]!r}" if wrong else record
