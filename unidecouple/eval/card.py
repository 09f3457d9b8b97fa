"""Score cards: every score with all that it depends on, as JSON and as a Markdown page.

To find why a score is not reproduced, compare two cards.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from unidecouple.eval.benchmark import BenchmarkResult
from unidecouple.files import sha256_file, write_json_atomic, write_text_atomic

PACKAGES: Final = ("unidecouple", "torch", "transformers", "numpy", "pillow")
CARD: Final = "card.json"
LEVEL: Final = 0.95
_WEIGHED = ("*.safetensors", "*.json", "*.jinja")


@dataclass(frozen=True)
class EvalSetup:
    """What was scored, and how: whatever answers or images depend on.

    Attributes:
        checkpoint: as the user named it.
        weights: file of the checkpoint -> SHA-256.
        settings: of decoding and drawing, and of the benchmark (sizes, seed, files).
        dtype, device: of the computation.
    """

    checkpoint: str
    weights: Mapping[str, str]
    settings: Mapping[str, Any]
    dtype: str
    device: str


def weights_of(folder: Path) -> dict[str, str]:
    """File name -> SHA-256 of a checkpoint: weights, configuration, tokenizer, chat template."""
    return {path.name: sha256_file(path) for path in sorted({p for pattern in _WEIGHED for p in folder.glob(pattern)})}


def intervals(result: BenchmarkResult) -> dict[str, tuple[float, float]]:
    """95% interval of each row that is a proportion."""
    return {metric: proportion.interval(LEVEL) for metric, proportion in result.proportions.items()}


def write_card(folder: Path, name: str, result: BenchmarkResult, setup: EvalSetup, files: Mapping[str, str]) -> Path:
    """Write ``card.json`` and ``card.md`` of one benchmark to ``folder``, and return the first."""
    ends = intervals(result)
    rows = []
    for row in result.scores:
        low, high = ends.get(row.metric, (None, None))
        proportion = result.proportions.get(row.metric)
        rows.append({**row.to_json(), "low": low, "high": high, "count": proportion.count if proportion else None})
    content = {
        "benchmark": name,
        "judge": result.judge,
        "scores": rows,
        "level": LEVEL,
        "failures": dict(result.failures),
        "checkpoint": setup.checkpoint,
        "weights": dict(setup.weights),
        "files": dict(files),
        "settings": dict(setup.settings),
        "dtype": setup.dtype,
        "device": setup.device,
        "versions": {"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        "scored_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json_atomic(folder / CARD, content)
    write_text_atomic(folder / "card.md", as_markdown(content))
    return folder / CARD


def as_markdown(card: Mapping[str, Any]) -> str:
    """The card as a page."""
    lines = [
        f"# {card['benchmark']}: {card['checkpoint']}",
        "",
        f"Read by **{card['judge']}** on {card['device']}, {card['dtype']}.",
        "",
    ]
    lines += ["| metric | value | 95% interval | of | floor | ceiling |", "|---|---|---|---|---|---|"]
    for row in card["scores"]:
        interval = "" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
        cells = [row["metric"], _number(row["value"]), interval, row["count"] or "", _number(row["floor"]), _number(row["ceiling"])]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        "Could not be read: " + (", ".join(f"{kind} {count}" for kind, count in card["failures"].items()) or "nothing") + ".",
    ]
    for title in ("settings", "weights", "files", "versions"):
        lines += ["", f"## {title.capitalize()}", "", *(f"- {key}: {value}" for key, value in card[title].items())]
    return "\n".join([*lines, "", f"Scored at {card['scored_at']}.", ""])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
