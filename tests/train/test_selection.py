"""Early stopping and the best checkpoint: hand-computed histories, and runs that end by them, interrupted or not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from small_runs import Run
from unidecouple.convert.stored import all_checkpoints, source_folder
from unidecouple.run import Evaluation, RunConfig
from unidecouple.train import train as train_module
from unidecouple.train.selection import Selection


def history(*values: float, benchmark: str = "pope") -> list[dict[str, Any]]:
    """Scores at steps 0, 10, 20, …"""
    return [{"step": 10 * n, "benchmark": benchmark, "metric": "accuracy", "value": value} for n, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "threshold", "best", "waited"),
    [
        ((0.9,), 0.0, None, 0),  # the score before training does not count
        ((0.9, 0.5, 0.6, 0.6), 0.0, 20, 1),  # an equal score is no improvement
        ((0.0, 0.5, 0.4, 0.6, 0.5, 0.5), 0.0, 30, 2),
        ((0.0, 0.5, 0.55, 0.58), 0.1, 30, 2),  # better, but by less than the threshold each time
        ((0.0, 0.5, 0.55, 0.7), 0.1, 30, 0),
    ],
)
def test_best_and_patience_are_transformers(values: tuple[float, ...], threshold: float, best: int | None, waited: int) -> None:
    records = history(*values)
    selection = Selection("pope", True, patience=waited or None, threshold=threshold)
    assert selection.best(records) == best
    assert selection.exhausted(records) == bool(waited)
    assert not replace(selection, patience=waited + 1).exhausted(records)


def test_a_loss_is_the_mean_over_tasks_and_falls() -> None:
    records = []
    for step, (answers, tokens) in {5: (-1.0, -4.0), 10: (-1.5, -3.0), 15: (-3.0, -2.0)}.items():
        for name, value in (("answers", answers), ("image_tokens", tokens), ("pope", 0.5)):
            metric = "accuracy" if name == "pope" else "log_probability"
            records.append({"step": step, "benchmark": name, "metric": metric, "value": value})
    run = RunConfig(load_best_model_at_end=True)
    loss = Selection.of(run, 0)
    assert loss is not None
    assert (loss.metric, loss.greater_is_better) == ("loss", False)
    assert loss.best(records) == 10  # means of 2.5, 2.25 and 2.5
    by_name = Selection.of(replace(run, metric_for_best_model="eval_image_tokens"), 0)
    assert by_name is not None
    assert (by_name.greater_is_better, by_name.best(records)) == (True, 15)
    assert replace(loss, after=10).best(records) == 15  # scores of an earlier stage do not count


def test_an_unknown_metric_is_named_before_training() -> None:
    with pytest.raises(ValueError, match=r"'bleu' is no validation score of this run, which has pope"):
        Selection("bleu", True).check(history(0.5))
    with pytest.raises(ValueError, match=r"evaluation\.eval_steps above 0"):
        RunConfig(early_stopping_patience=1, evaluation=Evaluation(eval_steps=0))


@pytest.fixture
def scored(small_run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Eight steps, with a made-up score each: .1 .3 .2 .2 …; steps 3 to 5 bring nothing."""
    made = {0: 0.9, 1: 0.1, 2: 0.3}

    def validate(scorer: object, folder: Path, trackers: object, say: object, step: int, model: object) -> None:
        line = {"step": step, "benchmark": "pope", "metric": "accuracy", "value": made.get(step, 0.2)}
        with (folder / "scores.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    monkeypatch.setattr(train_module, "_validate", validate)
    often = replace(small_run, max_steps=8, save_steps=0, evaluation=replace(small_run.evaluation, eval_steps=1), report_to=())
    return replace(often, load_best_model_at_end=True, metric_for_best_model="pope", early_stopping_patience=3)


@pytest.mark.parametrize("stop_after", [None, pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_stops_early_and_ends_with_its_best(scored: RunConfig, run: Run, tmp_path: Path, stop_after: int | None) -> None:
    """At step 5, three scores after the best; the best checkpoint survives the limit of one, and is what the folder stands for."""
    if stop_after is not None:
        assert not run(scored, tmp_path, stop_after)
    assert run(scored, tmp_path)
    assert [path.name for path in all_checkpoints(tmp_path)] == ["checkpoint-2"]
    assert [path.name for path in all_checkpoints(tmp_path / "later")] == ["checkpoint-5"]
    assert source_folder(str(tmp_path)).name == "checkpoint-2"
    assert json.loads((tmp_path / "scores.json").read_text())["step"] == 2
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 5
    before = (tmp_path / "scores.json").stat().st_mtime_ns
    assert run(scored, tmp_path)  # finished
    (tmp_path / "scores.json").unlink()  # killed while it was scored: trains nothing, and ends the same
    assert run(scored, tmp_path)
    assert json.loads((tmp_path / "scores.json").read_text())["step"] == 2
    assert (tmp_path / "scores.json").stat().st_mtime_ns != before
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 5
