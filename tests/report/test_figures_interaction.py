"""The figure of interaction curves: read from what a run wrote, one curve a task, its interval and what its caption says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unidecouple.diagnose.attention_interaction import (
    InteractionCurves,
    LayerInteraction,
    _half_widths,
    interaction_figure,
    interaction_of,
)
from unidecouple.report.logs import read_measured


def written(folder: Path, correlation: float | None = -0.5, tasks: tuple[str, ...] = ("mmu", "t2i")) -> Path:
    rows = [{"layer": layer, "task": task, "intensity": 0.1 * (layer + 1), "error": 0.01} for task in tasks for layer in range(3)]
    path = folder / "interaction.json"
    path.write_text(json.dumps({"step": 400, "correlation": correlation, "rows": rows}))
    return path


def test_what_a_run_wrote_is_read(tmp_path: Path) -> None:
    assert read_measured(tmp_path / "interaction.json", interaction_of) is None
    found = read_measured(written(tmp_path), interaction_of)
    assert found is not None
    assert (found.step, found.correlation, [*found.curves]) == (400, -0.5, ["mmu", "t2i"])
    assert found.curves["t2i"][2] == LayerInteraction(2, "t2i", pytest.approx(0.3), 0.01)


def test_both_tasks_are_drawn_and_their_correlation_said(tmp_path: Path) -> None:
    found = read_measured(written(tmp_path), interaction_of)
    plot = interaction_figure("a", "dense joint", [found])
    assert "correlation of the two tasks' curves over layers is \u22120.50;" in plot.caption
    assert plot.alt.startswith("dense joint: share of attention")
    for words in ("answers at the image", "generated tokens at the prompt"):
        assert words in plot.svg
    two = interaction_figure("a", "dense joint", [found, found])
    assert "\u22120.50 (mean of 2 seeds)" in two.caption


def test_of_one_task_there_is_one_curve(tmp_path: Path) -> None:
    plot = interaction_figure("a", "x", [read_measured(written(tmp_path, None, ("t2i",)), interaction_of)])
    assert plot.caption == "There are not two curves to compare."
    assert "answers at the image" not in plot.svg
    assert interaction_figure("a", "x", [InteractionCurves(0, {}, None)]) is None
    assert interaction_figure("a", "x", []) is None


def test_intervals() -> None:
    """Of one seed 1.96 standard errors over batches; of two, t(1) = 12.7 times their difference over 2."""
    assert _half_widths([[0.3, 0.4]], [0.01, 0.02]).tolist() == pytest.approx([0.0196, 0.0392])
    assert _half_widths([[0.3], [0.5]], [9.0]).tolist() == pytest.approx([12.706 * 0.1], rel=1e-3)
