"""The transfer matrix by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from unidecouple.eval.benchmark import Metric
from unidecouple.eval.suite import metric_named
from unidecouple.figures.estimates import SeedEstimate
from unidecouple.figures.wording import MINUS
from unidecouple.report.page import render
from unidecouple.report.results import load_results
from unidecouple.report.transfer import TransferCell, transfer_map, transfer_matrix

POPE, VQA, GENEVAL = map(metric_named, ("pope", "vqa", "geneval"))
START = {"pope": (0.90,), "vqa": (0.80,), "geneval": (0.10,)}
MMU_ONLY = {"pope": (0.96, 0.98), "vqa": (0.85, 0.85), "geneval": (0.00, 0.00)}
T2I_ONLY = {"pope": (0.60, 0.60), "vqa": (0.30, 0.30), "geneval": (0.50, 0.54)}
JOINT = {"pope": (0.94, 0.95), "vqa": (0.85, 0.85), "geneval": (0.60, 0.58)}


@pytest.fixture
def matrix(new_experiment: Callable[[], Any]) -> dict[tuple[str, Metric], TransferCell]:
    made = new_experiment()
    for variant, scores in (("start", START), ("dense_mmu", MMU_ONLY), ("dense_t2i", T2I_ONLY), ("dense_joint", JOINT)):
        made.add("S2", variant, scores)
    made.row("S2", "longer", 0, "pope", "accuracy", 0.99, step=900)
    cells = transfer_matrix(load_results(made.write()), "S2")
    return {(cell.variant, cell.metric): cell for cell in cells}


def test_change_is_against_the_start(matrix: dict[tuple[str, Metric], TransferCell]) -> None:
    forgotten = matrix["dense_t2i", POPE].change
    assert forgotten is not None
    assert (forgotten.mean, forgotten.half_width) == (pytest.approx(-0.30), pytest.approx(0.0, abs=1e-9))
    learned = matrix["dense_mmu", POPE].change
    assert learned is not None
    assert learned.mean == pytest.approx((0.06 + 0.08) / 2)


def test_transfer_is_against_the_run_on_that_task_alone_paired_by_seed(matrix: dict[tuple[str, Metric], TransferCell]) -> None:
    expected = {POPE: ((-0.02) + (-0.03)) / 2, VQA: 0.0, GENEVAL: (0.10 + 0.04) / 2}
    for metric, mean in expected.items():
        transfer = matrix["dense_joint", metric].transfer
        assert transfer is not None
        assert (transfer.mean, transfer.count) == (pytest.approx(mean), 2)
    assert matrix["dense_mmu", POPE].transfer is None, "it is that run"
    across = matrix["dense_mmu", GENEVAL].transfer
    assert across is not None
    assert across.mean == pytest.approx(-0.52)


def test_runs_of_other_lengths_are_not_compared(matrix: dict[tuple[str, Metric], TransferCell]) -> None:
    cell = matrix["longer", POPE]
    assert cell.transfer is None
    assert cell.change is not None
    assert ("longer", VQA) not in matrix


def test_the_map_says_what_was_lost(matrix: dict[tuple[str, Metric], TransferCell]) -> None:
    one, other = "dense, generation only", "dense, understanding only"
    plot = transfer_map("t", "S2", list(matrix.values()), lambda name: {"dense_t2i": one, "dense_mmu": other}.get(name, name))
    assert plot is not None
    assert f"{MINUS}30.0" in plot.svg
    assert f"Forgetting that the seeds can show: POPE of {one}; VQA of {one}; GenEval of {other}." in plot.caption
    assert f"Negative transfer that the seeds can show: POPE of {one}; VQA of {one}; GenEval of {other}." in plot.caption
    assert transfer_map("t", "S2", [], str) is None
    single = transfer_map("t", "S2", [TransferCell("dense_joint", POPE, SeedEstimate(-0.4, None, 1), None)], str)
    assert single is not None
    assert single.caption.endswith("may be chance. No task was trained alone for as long.")


@pytest.mark.slow
def test_the_report_has_it(experiment: Any, new_experiment: Callable[[], Any]) -> None:
    assert "Transfer and forgetting" in render(load_results(experiment.write()), ())
    bare = new_experiment()
    bare.add("S2", "dense_joint", JOINT)
    assert "S2 has neither a start nor a run on one task alone." in render(load_results(bare.write()), ())
