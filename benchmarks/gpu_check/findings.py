"""Findings of the GPU check: one JSON object per line, appended and synced to disk as soon as it is known.

Standard library only: the process that starts the parts must not load torch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE, SUMMARY = "findings.jsonl", "summary.md"


@dataclass(frozen=True)
class Goal:
    """A bar that a value should reach.

    Attributes:
        bound: the value must be at least this, or at most this (``at_most``).
        always: judged on any device, as correctness is; otherwise on a GPU at full size only.
    """

    bound: float
    at_most: bool = False
    always: bool = False

    def __str__(self) -> str:
        return f"at {'most' if self.at_most else 'least'} {self.bound:g}"

    def met(self, value: float) -> bool:
        """Whether ``value`` reaches it; NaN never does."""
        return value <= self.bound if self.at_most else value >= self.bound


@dataclass(frozen=True)
class Findings:
    """The file that all parts append to.

    Attributes:
        path: of the file.
        part: whose findings are added.
        real: whether this is a GPU at full size, where goals of speed are judged.
    """

    path: Path
    part: str
    real: bool

    def add(self, name: str, value: float | None = None, unit: str = "", goal: Goal | None = None, **details: Any) -> None:
        """Append one finding; it is on disk when this returns."""
        row: dict[str, Any] = {"part": self.part, "name": name}
        if value is not None:
            row |= {"value": value, "unit": unit}
        if goal is not None and value is not None:
            row |= {"goal": str(goal), "met": goal.met(value) if self.real or goal.always else None}
        line = json.dumps(row | details, default=str)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(line, flush=True)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """All findings; a line that a killed process left unfinished is skipped."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def write_summary(folder: Path) -> None:
    """Write ``summary.md``: a table of all findings with a value, its goal beside it, then the errors."""
    rows = list(read(folder / FILE))
    lines = ["| part | finding | value | goal |", "|---|---|---|---|"]
    lines += [
        f"| {row['part']} | {row['name']} | {_number(row['value'])} {row['unit']} | {_verdict(row)} |"
        for row in rows
        if "value" in row
    ]
    errors = [f"- {row['part']}, {row['name']}: {row['error']}" for row in rows if "error" in row]
    (folder / SUMMARY).write_text("\n".join([*lines, "", *(errors or ["No errors."])]) + "\n", encoding="utf-8")


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.4g}"


def _verdict(row: dict[str, Any]) -> str:
    met = {True: ": met", False: ": **missed**", None: ""}[row.get("met")]
    return f"{row.get('goal', '')}{met}"
