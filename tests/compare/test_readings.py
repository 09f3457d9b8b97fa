"""Tidy rows of what a run measured beside its scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unidecouple.compare.readings import from_one_task, readings


def lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    score = {"benchmark": "pope", "metric": "accuracy"}
    lines(tmp_path / "scores.jsonl", [score | {"step": step, "value": 0.5 + step / 1000} for step in (0, 100, 200)])
    lines(tmp_path / "metrics.jsonl", [{"step": step, "stage": "s", "loss/t2i": 3 - step / 100} for step in (50, 100, 150, 200)])
    points = [{"layer": n, "task": t, "intensity": 0.1 * n, "error": 0.0} for t in ("mmu", "t2i") for n in (0, 1)]
    (tmp_path / "interaction.json").write_text(json.dumps({"step": 200, "correlation": -0.5, "rows": points}))
    layer = {"group_share": {}, "expert_share": {}, "load_entropy": {"mmu": 0.5, "t2i": None}}
    records = [
        {"step": s, "stage": "s", "layers": [{"layer": n, "token_entropy": {"mmu": 0.2 * n + s / 1000}} | layer for n in (0, 1)]}
        for s in (50, 100, 200)
    ]
    lines(tmp_path / "routing.jsonl", records)
    cell = {"part": "down", "cosine_std": 0.0, "floor_std": 0.0, "norm_ratio": 1.0}
    cells = [cell | {"layer": 0, "cosine": -0.2, "floor": 0.3}, cell | {"layer": 1, "cosine": 0.0, "floor": 0.1}]
    (tmp_path / "conflict.json").write_text(json.dumps({"step": 200, "rows": cells}))
    return tmp_path


def test_every_log_gives_its_rows(run: Path) -> None:
    found = {(row["benchmark"], row["metric"], row["step"]): row["value"] for row in readings(run)}
    assert found.pop(("pope", "accuracy/val", 100)) == pytest.approx(0.6)
    assert found.pop(("pope", "accuracy/val", 200)) == pytest.approx(0.7)
    assert found.pop(("loss", "t2i", 100)) == pytest.approx(2.0)
    assert found.pop(("loss", "t2i", 200)) == pytest.approx(1.0)
    assert found.pop(("interaction", "correlation", 200)) == -0.5
    assert found.pop(("interaction", "t2i/1", 200)) == pytest.approx(0.1)
    assert [found.pop(("interaction", name, 200)) for name in ("mmu/0", "mmu/1", "t2i/0")] == pytest.approx([0.0, 0.1, 0.0])
    assert found.pop(("routing", "token_entropy/mmu", 50)) == pytest.approx(0.15)  # the mean of .05 and .25
    assert found.pop(("routing", "token_entropy/mmu", 200)) == pytest.approx(0.3)
    assert [found.pop(("routing", "load_entropy/mmu", step)) for step in (50, 200)] == [0.5, 0.5]
    assert found.pop(("conflict", "cosine", 200)) == pytest.approx(-0.1)
    assert found.pop(("conflict", "floor", 200)) == pytest.approx(0.2)
    assert found.pop(("conflict", "above_floor", 200)) == pytest.approx(-0.3)
    assert found == {}


def test_what_was_not_logged_has_no_rows(tmp_path: Path) -> None:
    assert readings(tmp_path) == []


def point(variant: str, metric: str, value: float, seed: int = 0) -> dict[str, Any]:
    place = {"scenario": "S2", "variant": variant, "seed": seed, "step": 9, "judge": None}
    return place | {"benchmark": "interaction", "metric": metric, "value": value}


def test_distance_from_models_of_one_task() -> None:
    """|.5 - .3| for understanding, |.1 - .5| for generation; what its own control does in the other task does not count."""
    controls = {"mmu": "dense_mmu", "t2i": "dense_t2i"}
    alone = [point("dense_mmu", "mmu/0", 0.3), point("dense_mmu", "t2i/0", 0.9), point("dense_t2i", "t2i/0", 0.5)]
    ours = [point("ours", "mmu/0", 0.5), point("ours", "t2i/0", 0.1), point("ours", "correlation", -1.0)]
    (row,) = from_one_task([*alone, *ours], controls)
    assert row == point("ours", "from_one_task", pytest.approx(0.3))
    assert from_one_task([*alone, *(one | {"seed": 1} for one in ours)], controls) == [], "no control of that seed"
    assert from_one_task([*alone[:1], *ours], controls) == [], "one control is missing"
