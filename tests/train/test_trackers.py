"""Trackers: the documents' example, Weights & Biases by a stand-in, TensorBoard, and what is refused."""

from __future__ import annotations

import re
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from small_runs import Run
from unidecouple.run import RunConfig
from unidecouple.train.trackers import TrackedRun, tracking

PAGE = Path(__file__).parents[2] / "docs" / "fine-tune.md"


def test_the_documents_tracker_gets_a_run(small_run: RunConfig, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in the working folder; losses of every logged step, and the end."""
    (code,) = re.findall(r"```python\n# my_tracker\.py\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "my_tracker.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_tracker", raising=False)
    assert run(replace(small_run, max_steps=2, report_to=("my_tracker:Csv",)), tmp_path / "run")
    lines = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert lines[0] == "from step 0"
    assert [line.split(",")[0] for line in lines if ",loss/mmu," in line] == ["1", "2"]
    assert lines[-1] == "finished"


def test_weights_and_biases_resumes_by_the_folder_s_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    class Begun:
        def log(self, values: dict[str, float], step: int) -> None:
            calls.append((step, values))

        def finish(self) -> None:
            calls.append(("finished",))

    def init(**given: object) -> Begun:
        calls.append((given["id"], given["name"], given["resume"], given["project"], given["config"]))
        return Begun()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    with tracking(["wandb"], TrackedRun(tmp_path / "run7", 3, {"seed": 1})) as (tracker,):
        tracker.log(4, {"loss/mmu": 0.5})
    assert calls == [("run7", "run7", "allow", "mine", {"seed": 1}), (4, {"loss/mmu": 0.5}), ("finished",)]


def test_tensorboard_hides_what_runs_again(tmp_path: Path) -> None:
    for start, steps in ((0, (1, 2, 3)), (1, (2,))):
        with tracking(["tensorboard"], TrackedRun(tmp_path, start)) as (tracker,):
            for step in steps:
                tracker.log(step, {"a": step + start / 2})
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in shown.Scalars("a")] == [(1, 1.0), (2, 2.5)]


def test_started_trackers_are_finished_when_another_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    class Good:
        def start(self, run: TrackedRun) -> None: ...

        def finish(self) -> None:
            ended.append("good")

    class Bad(Good):
        def start(self, run: TrackedRun) -> None:
            raise ValueError("no")

    monkeypatch.setitem(sys.modules, "made_up_trackers", types.SimpleNamespace(Good=Good, Bad=Bad))
    with pytest.raises(ValueError, match="no"), tracking(["made_up_trackers:Good", "made_up_trackers:Bad"], TrackedRun(tmp_path)):
        pass
    assert ended == ["good"]


def test_unknown_trackers_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"report_to names 'mlflow'; there are 'tensorboard', 'wandb'"):
        RunConfig(report_to=("mlflow",))
    with (
        pytest.raises(ValueError, match=r"'nowhere_at_all:X', which cannot be imported"),
        tracking(["nowhere_at_all:X"], TrackedRun(tmp_path)),
    ):
        pass
