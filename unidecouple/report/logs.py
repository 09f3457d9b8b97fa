"""What a run wrote beside its scores, as typed values. A file that is missing is None: reports are drawn from what there is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from unidecouple.diagnose.gradient_conflict import Conflict

METRICS, SCORES, CONFLICT, ROUTING, SAMPLES = "metrics.jsonl", "scores.jsonl", "conflict.json", "routing.json", "samples.json"
CONFLICT_START, ROUTING_LOG, INTERACTION = "conflict-start.json", "routing.jsonl", "interaction.json"

Curve = dict[int, float]
"""Step -> value."""


@dataclass(frozen=True)
class ConflictLog:
    """``Conflict`` of every weight matrix that both tasks use, after ``step`` steps (None where unknown).

    Cosines and floors are means over ``pairs`` pairs of batches each; 1 where the log does not say.
    """

    step: int | None
    matrices: tuple[Conflict, ...]
    pairs: int = 1


@dataclass(frozen=True)
class RoutingLayer:
    """Shares of each task's tokens by group and by expert (over all groups), by task key; each sums to one.

    The entropies, dead experts and ``sizes`` (experts in each group) are those of ``diagnose.routing.routing_rows``; logs of
    earlier versions lack them.
    """

    layer: int
    alpha: float | None
    group_share: Mapping[str, Sequence[float]]
    expert_share: Mapping[str, Sequence[float]]
    load_entropy: Mapping[str, float | None] = field(default_factory=dict)
    token_entropy: Mapping[str, float | None] = field(default_factory=dict)
    dead: Sequence[int] = ()
    sizes: Sequence[int] = ()


@dataclass(frozen=True)
class InteractionPoint:
    """Share of attention given to the other modality in one layer, and its standard error over batches."""

    layer: int
    intensity: float
    error: float


@dataclass(frozen=True)
class Interaction:
    """A curve over layers for each task key measured, after ``step`` steps; how the two correlate, None if that says nothing."""

    step: int
    curves: Mapping[str, tuple[InteractionPoint, ...]]
    correlation: float | None


@dataclass(frozen=True)
class JudgedSample:
    """A generated picture (the bytes of a PNG file) and the judge's verdict."""

    prompt: str
    tag: str
    png: bytes
    correct: bool
    reason: str


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


def read_conflict(path: Path) -> ConflictLog | None:
    """``conflict.json``, without matrices that could not be measured; None if there is none."""
    content = _object(path)
    return None if content is None else conflict_of(content)


def conflict_of(content: Mapping[str, Any]) -> ConflictLog:
    """The content of ``conflict.json`` as typed values."""
    measured = (row for row in content["rows"] if row["cosine"] is not None)
    return ConflictLog(content["step"], tuple(Conflict(**row) for row in measured), content.get("pairs", 1))


def read_routing(path: Path) -> tuple[RoutingLayer, ...] | None:
    """``routing.json``; None if there is none."""
    content = _object(path)
    return None if content is None else routing_of(content)


def routing_of(content: Mapping[str, Any]) -> tuple[RoutingLayer, ...]:
    """The content of ``routing.json``, or of a record of ``routing.jsonl`` (which knows no alpha), as typed values."""
    return tuple(RoutingLayer(**{"alpha": None} | layer) for layer in content["layers"])


def read_interaction(path: Path) -> Interaction | None:
    """``interaction.json``; None if there is none."""
    content = _object(path)
    return None if content is None else interaction_of(content)


def interaction_of(content: Mapping[str, Any]) -> Interaction:
    """The content of ``interaction.json`` as typed values."""
    curves: dict[str, tuple[InteractionPoint, ...]] = {}
    for row in content["rows"]:
        point = InteractionPoint(row["layer"], row["intensity"], row["error"])
        curves[row["task"]] = (*curves.get(row["task"], ()), point)
    return Interaction(content["step"], curves, content["correlation"])


def read_samples(path: Path) -> tuple[JudgedSample, ...] | None:
    """``samples.json`` with its pictures (those whose file is there); None if there is none."""
    content = _object(path)
    if content is None:
        return None
    return tuple(
        JudgedSample(row["prompt"], row["tag"], (path.parent / row["file"]).read_bytes(), row["correct"], row["reason"])
        for row in content
        if (path.parent / row["file"]).is_file()
    )


def _object(path: Path) -> Any:
    return _parsed(path, path.read_text(encoding="utf-8"), "it") if path.is_file() else None


def _parsed(path: Path, text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {where} is no JSON ({error}); remove the file, and the report is made without it") from error
