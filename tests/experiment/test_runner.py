"""What the runner decides by itself: which run goes first, what a failed run leaves, what is not run again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from unidecouple import config
from unidecouple.experiment.plan import Experiment, Rate, Scenario, Variant, jobs
from unidecouple.experiment.runner import ExperimentError, expected_work, run_experiment
from unidecouple.methods.stage import Stage
from unidecouple.run import Data, Evaluation, RunConfig

DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"
ONE_STEP = RunConfig(
    data=Data(pairs=8, scenes=8),
    max_steps=1,
    diagnose=False,
    evaluation=Evaluation(eval_steps=0, pope_images=2, vqa_questions=2, prompts_per_tag=2, num_images=1),
)


def test_the_longest_run_of_the_demo_goes_first_and_scoring_the_start_last() -> None:
    order = sorted(jobs(config.load(Experiment, [DEMO])), key=expected_work, reverse=True)
    assert (order[0].scenario, order[0].variant) == ("S1-r16", "unidecouple")
    assert (order[1].scenario, order[1].variant) == ("S1-r0", "unidecouple")
    assert order[-1].variant == "start"
    assert expected_work(order[-1]) == 0


def test_points_of_a_rate_grid_are_runs_of_their_own(small_base: Path, tmp_path: Path) -> None:
    """Their folders have an equals sign in their names, as overrides on the command line have."""
    variant = Variant("generation only", stages=(Stage(train={"generation": 1}),), tasks="t2i", rates=("lr=0.3",))
    scenarios = {"S1-r0": Scenario("no replay", str(small_base), 2, 0)}
    grid = Experiment("grid", scenarios, {"dense_t2i": variant}, rates={"": Rate(), "lr=0.3": Rate(0.3)}, run=ONE_STEP)
    results = json.loads(run_experiment(grid, tmp_path / "grid", tmp_path / "cache", 2, "a test").read_text())
    assert {row["variant"] for row in results["rows"]} == {"start", "dense_t2i@lr=0.3"}


def test_a_failed_run_is_told_and_the_others_are_kept(small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One variant freezes what does not exist; the other's run and the start's are finished and never run again."""
    good = Variant("good", stages=(Stage(train={"generation": 1}),), tasks="t2i")
    bad = Variant("bad", stages=(Stage(train={"generatoin": 1}),))
    grid = Experiment(
        "grid", {"S1-r0": Scenario("no replay", str(small_base), 2, 0)}, {"dense_t2i": good, "bad": bad}, run=ONE_STEP
    )
    folder = tmp_path / "grid"
    with pytest.raises(ExperimentError, match=r"(?s)1 of 3 runs did not finish.*S1-r0/bad.*'generatoin' matches no weight"):
        run_experiment(grid, folder, tmp_path / "cache", 2, "a test")
    assert not (folder / "results.json").exists()
    done = sorted(folder.glob("*/*/*/scores.json"))
    assert [path.parts[-3] for path in done] == ["dense_t2i", "start"]
    written = [path.stat().st_mtime_ns for path in done]
    assert "'generatoin'" in (folder / "S1-r0" / "bad" / "seed0" / "log.txt").read_text()

    capsys.readouterr()
    results = json.loads(
        run_experiment(replace(grid, variants={"dense_t2i": good}), folder, tmp_path / "cache", 2, "again").read_text()
    )
    assert "2 runs, 2 of them done before" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in done] == written
    assert {row["variant"] for row in results["rows"]} == {"start", "dense_t2i"}
    assert {row["step"] for row in results["rows"] if row["variant"] == "dense_t2i"} == {1}
    meta = results["meta"]
    assert (meta["command"], meta["scenarios"]) == ("again", {"S1-r0": "no replay"})
    assert set(meta["hashes"]) == {str(small_base)}
    assert meta["versions"]["torch"]
    assert meta["cpu_seconds"] > 0
