"""A folder counts as done only for the run that is in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from unidecouple import config
from unidecouple.compare.done import finished
from unidecouple.compare.plan import Comparison, Job, Scenario, Variant, jobs
from unidecouple.methods.stage import Stage

GRID = Comparison(
    "grid", {"S1": Scenario("replay", "understanding", 4, 1)}, {"dense_joint": Variant("a"), "other": Variant("b", tasks="t2i")}
)


def leave(folder: Path, job: Job, done: bool = True) -> Path:
    """What a run of ``job`` leaves of itself."""
    place = folder / job.folder
    place.mkdir(parents=True)
    (place / "run.yaml").write_text(config.dump(job.config))
    (place / "metrics.jsonl").write_text('{"step": 1}\n')
    if done:
        (place / "scores.json").write_text('{"step": 0, "scores": [{"benchmark": "pope"}]}')
    return place


def test_only_scores_make_a_run_done(tmp_path: Path) -> None:
    start, first, second = jobs(GRID)
    assert finished(jobs(GRID), tmp_path) == []
    leave(tmp_path, first)
    leave(tmp_path, second, done=False)
    assert finished([start, first, second], tmp_path) == [first]


@pytest.mark.parametrize("done", [True, False])
def test_another_configuration_is_told_key_by_key(done: bool, tmp_path: Path) -> None:
    leave(tmp_path, jobs(GRID)[1], done)
    changed = replace(GRID, variants={"dense_joint": Variant("a", stages=(Stage(learning_rate=2e-3),))})
    with pytest.raises(
        ValueError, match=r"(?s)S1/dense_joint/seed0/run.yaml has stages\.0\.learning_rate: 0\.001, not 0\.002.*--output"
    ):
        finished(jobs(changed), tmp_path)


def test_many_are_counted(tmp_path: Path) -> None:
    grid = replace(GRID, seeds=tuple(range(8)))
    for job in jobs(grid)[1:]:
        leave(tmp_path, job)
    with pytest.raises(ValueError, match=r"max_steps: 400, not 7\n  and 11 more"):
        finished(jobs(replace(grid, run=replace(grid.run, max_steps=7))), tmp_path)


def test_settings_newer_than_the_run_have_their_defaults(tmp_path: Path) -> None:
    job = jobs(GRID)[1]
    saved = leave(tmp_path, job) / "run.yaml"
    older = "".join(line for line in saved.read_text().splitlines(keepends=True) if not line.startswith(("bf16", "parallel")))
    assert older != saved.read_text()
    saved.write_text(older)
    assert finished([job], tmp_path) == [job]


def test_scores_of_nobody_are_no_ones(tmp_path: Path) -> None:
    job = jobs(GRID)[1]
    (leave(tmp_path, job) / "run.yaml").unlink()
    with pytest.raises(ValueError, match=r"scores.json but no run.yaml"):
        finished([job], tmp_path)
