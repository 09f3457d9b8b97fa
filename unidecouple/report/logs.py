"""What a run wrote beside its scores, as typed values. A file that is missing is None: reports are drawn from what there is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from unidecouple.figures.estimates import Curve

METRICS, SCORES, CONFLICT, ROUTING, SAMPLES = "metrics.jsonl", "scores.jsonl", "conflict.json", "routing.json", "samples.json"
CONFLICT_START, ROUTING_LOG, INTERACTION = "conflict-start.json", "routing.jsonl", "interaction.json"

T = TypeVar("T")


@dataclass(frozen=True)
class KeptSample:
    """What a run made of a prompt or question: an image or an answer, and the judge's verdict.

    Attributes:
        prompt: or question.
        tag: its kind.
        png: bytes of a PNG file; of a question, its image, and empty where it has none.
        correct: None where nothing judged it.
        reason: what the judge missed.
        answer: to a question; None for a prompt.
        reference: the data's own answer.
        shown: bytes of the data's own image for a prompt.
    """

    prompt: str
    tag: str
    png: bytes
    correct: bool | None
    reason: str
    answer: str | None = None
    reference: str = ""
    shown: bytes | None = None


def read_lines(path: Path) -> list[dict[str, Any]] | None:
    """The records of a JSONL file; None if there is none.

    Raises:
        ValueError: a line is no JSON.
    """
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_parsed(path, text, f"line {number}") for number, text in enumerate(lines, start=1) if text.strip()]


def curve(records: Sequence[Mapping[str, Any]], key: str) -> Curve:
    """Values of ``key`` in the records of ``metrics.jsonl`` that have it."""
    return {int(record["step"]): float(record[key]) for record in records if record.get(key) is not None}


def score_curve(records: Sequence[Mapping[str, Any]], benchmark: str, metric: str) -> Curve:
    """Values of one score in the records of ``scores.jsonl``."""
    return curve([record for record in records if (record["benchmark"], record["metric"]) == (benchmark, metric)], "value")


def stage_starts(records: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """(step, name) of the first record of each stage after the first."""
    return [(int(after["step"]), str(after["stage"])) for before, after in pairwise(records) if after["stage"] != before["stage"]]


def read_measured(path: Path, read: Callable[[Any], T]) -> T | None:
    """What a probe measured, read by e.g. ``conflict_of``; None if the file is missing."""
    content = _object(path)
    return None if content is None else read(content)


def read_samples(path: Path) -> tuple[KeptSample, ...] | None:
    """``samples.json`` with its images (those whose file is there); None if there is none."""
    content = _object(path)
    if content is None:
        return None
    found = []
    for row in content:
        files = [path.parent / row[key] for key in ("file", "shown") if key in row]
        if all(file.is_file() for file in files):
            png, *own = [file.read_bytes() for file in files] or [b""]
            said = (row.get("answer"), row.get("reference", ""))
            found.append(KeptSample(row["prompt"], row["tag"], png, row["correct"], row["reason"], *said, next(iter(own), None)))
    return tuple(found)


def _object(path: Path) -> Any:
    return _parsed(path, path.read_text(encoding="utf-8"), "it") if path.is_file() else None


def _parsed(path: Path, text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {where} is no JSON ({error}); remove the file, and the report is made without it") from error
