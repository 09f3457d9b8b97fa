"""What the runner decides by itself: which run goes first, what a failed or killed run leaves, what is not run again."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from small_runs import TWO_STEPS
from unidecouple import config
from unidecouple.cli import main
from unidecouple.compare.plan import Comparison, Rate, Scenario, Variant, jobs
from unidecouple.compare.runner import CompareOptions, ComparisonError, expected_work, run_comparison
from unidecouple.methods.stage import Stage

DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"
DRAW = (Stage(train={"generation": 1}),)
RATES = {"": Rate(), "lr=0.3": Rate(0.3)}


def test_the_longest_run_of_the_demo_goes_first_and_scoring_the_start_last() -> None:
    order = sorted(jobs(config.load(Comparison, [DEMO])), key=expected_work, reverse=True)
    assert (order[0].scenario, order[0].variant) == ("S1-r16", "unidecouple")
    assert (order[1].scenario, order[1].variant) == ("S1-r0", "unidecouple")
    assert order[-1].variant == "start"
    assert expected_work(order[-1]) == 0


def test_nothing_runs_on_unequal_budgets(tmp_path: Path) -> None:
    variants = {"dense_joint": Variant("a"), "long": Variant("b", max_steps=3)}
    grid = Comparison("grid", {"S1": Scenario("replay", "understanding", 2, 1)}, variants, run=TWO_STEPS)
    with pytest.raises(ValueError, match="must see equal budgets"):
        run_comparison(grid, CompareOptions(tmp_path / "grid", tmp_path / "cache", 1))
    assert not (tmp_path / "grid").exists()


def small_grid(base: Path, **variants: Variant) -> Comparison:
    return Comparison("grid", {"S1-r0": Scenario("no replay", str(base), 2, 0)}, variants, rates=RATES, run=TWO_STEPS)


@pytest.mark.slow
def test_a_failed_run_is_told_and_the_others_are_kept(small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """First a part of the grid, then the rest: one variant diverges at its second step, the others' runs never run again."""
    rates = ("lr=0.3",)  # the folder has an equals sign, as overrides have
    good = Variant("good", title="Good", stages=DRAW, tasks="t2i", rates=rates)
    bad = Variant("bad", stages=(Stage(learning_rate=1e38, warmup_steps=0, train={"generation": 1}),), rates=("",))
    grid = small_grid(small_base, dense_t2i=good, bad=bad)
    order = CompareOptions(tmp_path / "grid", tmp_path / "cache", 2, ("variant=start",), command="a test")
    part = json.loads(run_comparison(grid, order).read_text())
    assert [run["variant"] for run in part["meta"]["runs"]] == ["start"]
    assert [run["variant"] for run in part["meta"]["missing"]] == ["dense_t2i@lr=0.3", "bad"]
    assert "2 of 3 runs are missing" in capsys.readouterr().out
    assert part["meta"]["wall_seconds"] > 0

    start = tmp_path / "grid" / "S1-r0" / "start" / "seed0" / "scores.json"
    written = start.stat().st_mtime_ns
    with pytest.raises(ComparisonError, match=r"(?s)1 of 3 runs did not finish.*S1-r0/bad.*the loss is not finite"):
        run_comparison(grid, replace(order, only=()))
    assert "3 runs, 1 of them done before" in capsys.readouterr().out
    assert start.stat().st_mtime_ns == written
    content = json.loads((tmp_path / "grid" / "results.json").read_text())
    (missing,) = content["meta"]["missing"]
    assert missing["error"].startswith("the loss is not finite")
    assert missing == {"scenario": "S1-r0", "variant": "bad", "seed": 0, "error": missing["error"]}
    check_rows(content, str(small_base), tmp_path / "grid")
    again = json.loads(run_comparison(grid, replace(order, only=("variant=dense_t2i",))).read_text())
    assert again["meta"]["missing"] == content["meta"]["missing"], "a command for another part forgets no error"
    assert content["meta"]["wall_seconds"] is None, "of the second command alone"

    whole = json.loads(run_comparison(replace(grid, variants={"dense_t2i": good}), replace(order, only=())).read_text())
    assert "2 runs, 2 of them done before" in capsys.readouterr().out
    assert whole["rows"] == content["rows"]


def check_rows(content: dict[str, Any], base: str, folder: Path) -> None:
    """Each row carries the budget of its run, and ``meta`` what it cost."""
    rows, meta = content["rows"], content["meta"]
    assert {(row["variant"], row["step"]) for row in rows} == {("start", 0), ("dense_t2i@lr=0.3", 2)}
    columns = ("mmu_steps", "t2i_steps", "mmu_samples", "t2i_samples", "mmu_tokens", "t2i_tokens", "rate", "rates_tried")
    planned = meta["budgets"]["S1-r0"]["dense_t2i"]["tokens"]["t2i"]
    seen = {row["variant"]: tuple(row[name] for name in columns) for row in (*rows, *meta["runs"])}
    assert seen == {"start": (0, 0, 0, 0, 0, 0, "", 0), "dense_t2i@lr=0.3": (0, 2, 0, 4, 0, planned, "lr=0.3", 1)}
    log = Path(folder / "S1-r0" / "dense_t2i@lr=0.3" / "seed0" / "metrics.jsonl").read_text().splitlines()
    assert 0.8 * planned < json.loads(log[-1])["tokens/t2i"] <= 1.1 * planned, "padding is planned, and prompts differ in length"
    assert meta["costs"]["S1-r0"]["dense_t2i"]["parameters"] > 0
    assert all(run["cpu_seconds"] > 0 and run["peak_memory_bytes"] > 2**20 for run in meta["runs"])
    assert (meta["command"], meta["scenarios"], meta["control"]) == ("a test", {"S1-r0": "no replay"}, "bad")
    assert meta["titles"] == {"dense_t2i": "Good"}
    assert set(meta["hashes"]) == {base}
    assert meta["versions"]["torch"]


@pytest.mark.slow
def test_a_killed_command_is_taken_up_again(small_base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """kill -9 on the command alone, while runs go: what it leaves running does not get in the way of the next attempt."""
    longer = replace(TWO_STEPS, max_steps=60, save_steps=10)
    grid = replace(small_grid(small_base, moe=Variant("a", stages=DRAW, rates=("",))), run=longer)
    (tmp_path / "grid.yaml").write_text(config.dump(grid))
    folder = tmp_path / "grid"
    words = ["compare", str(tmp_path / "grid.yaml"), "--workers", "2", "--output", str(folder), "--cache", str(tmp_path / "cache")]
    child = subprocess.Popen([sys.executable, "-m", "unidecouple", *words], stdout=subprocess.DEVNULL)
    done = folder / "S1-r0" / "start" / "seed0" / "scores.json"
    trained = folder / "S1-r0" / "moe" / "seed0" / "metrics.jsonl"
    wait_for(lambda: done.is_file() and trained.is_file())
    child.kill()
    child.wait()
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*/*/*/scores.json")}
    assert done in finished

    assert main(words) == 0
    assert re.search(r"2 runs, [12] of them done before", capfd.readouterr().out)  # what was left running may have got through
    assert all(path.stat().st_mtime_ns == before for path, before in finished.items())
    content = json.loads((folder / "results.json").read_text())
    assert {row["variant"] for row in content["rows"]} == {"start", "moe"}
    assert content["meta"]["missing"] == []
    steps = [json.loads(line)["step"] for line in trained.read_text().splitlines()]
    assert steps == list(range(1, longer.max_steps + 1)), "no step is logged twice, none is lost"
    assert (folder / "report.html").is_file()


def wait_for(there: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not there():
        assert time.monotonic() < until
        time.sleep(0.01)
