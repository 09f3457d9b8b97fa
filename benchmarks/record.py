"""What came out of a benchmark: a table for the terminal, and a file that says with what and how it was made."""

from __future__ import annotations

import datetime
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from unidecouple.files import write_json_atomic

RESULTS = Path(__file__).parent / "results"
CPU_CLOCK = "CPU seconds of the process (time.process_time), not wall seconds"
PACKAGES = ("torch", "transformers", "peft", "unidecouple")


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        what: is measured.
        value: a number, in ``unit``.
        unit: "x" is a ratio.
        low, high: spread, where it was timed.
        goal: as text; empty where there is none.
        met: whether ``value`` meets it; None without a goal.
    """

    what: str
    value: float
    unit: str = "x"
    low: float | None = None
    high: float | None = None
    goal: str = ""
    met: bool | None = None

    def cells(self) -> tuple[str, str, str, str]:
        """As text: what, value, spread, goal."""
        value = f"{self.value:,.0f}" if float(self.value).is_integer() else f"{self.value:.3f}"
        spread = "" if self.low is None or self.high is None else f"{self.low:.3f} to {self.high:.3f}"
        verdict = "" if self.met is None else f"{self.goal}: {'met' if self.met else 'missed'}"
        return self.what, f"{value} {self.unit}", spread, verdict


@dataclass(frozen=True)
class Result:
    """A benchmark's outcome.

    Attributes:
        name: of the benchmark, and of its file.
        title: of its table.
        settings: shapes, seeds, repeats.
        rows: the table.
        details: what the rows are made of (seconds of every repeat, bytes), for the file alone.
    """

    name: str
    title: str
    settings: Mapping[str, Any]
    rows: Sequence[Row]
    details: Mapping[str, Any]

    def table(self) -> str:
        """For a terminal."""
        cells = [("", "value", "spread", "goal"), *(row.cells() for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(4)]
        lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        return "\n".join([f"\n{self.title}", settings, *lines])

    def write(self, folder: Path = RESULTS) -> Path:
        """Write ``<name>.json`` with versions, date and commit, and return its path."""
        path = folder / f"{self.name}.json"
        made = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "commit": commit(),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, 1 thread",
            "clock": CPU_CLOCK,
        }
        write_json_atomic(path, {**asdict(self), "made": made})
        return path


def commit() -> str:
    """The commit of the sources, with "+changes" where files differ from it; empty outside a git checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "..", ":!results")
    return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
