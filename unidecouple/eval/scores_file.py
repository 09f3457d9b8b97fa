"""The scores of an evaluation in the shape of a run's: one ``scores.json`` from the cards of all benchmarks."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Final

from unidecouple.eval.benchmark import Score
from unidecouple.eval.card import CARD
from unidecouple.files import write_json_atomic

SCORES: Final = "scores.json"
_CHECKPOINT: Final = "checkpoint-"


def write_scores(output: Path, checkpoint: str) -> Path | None:
    """Write ``output/scores.json`` from the cards of ``checkpoint`` in ``output``, of earlier commands too.

    Returns:
        Its path; None where nothing is scored yet. ``unidecouple report`` reads it like that of a run.
    """
    cards = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(output.glob(f"*/{CARD}"))]
    cards = [card for card in cards if card["checkpoint"] == checkpoint]
    if not cards:
        return None
    names = [field.name for field in fields(Score)]
    last = Path(checkpoint).name
    content = {
        "step": int(last.removeprefix(_CHECKPOINT)) if last.startswith(_CHECKPOINT) else 0,
        "checkpoint": checkpoint,
        "data": "files" if any(card["files"] for card in cards) else "world",
        "scores": [{name: row[name] for name in names} for card in cards for row in card["scores"]],
    }
    write_json_atomic(output / SCORES, content)
    return output / SCORES
