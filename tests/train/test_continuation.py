"""A finished run continues with a higher ``max_steps``, exactly: the same weights as a run of that length."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from small_runs import APART_THEN_JOINT, Run
from unidecouple import config
from unidecouple.convert.stored import all_checkpoints
from unidecouple.methods.structure import TaskAwareMoE
from unidecouple.run import RunConfig
from unidecouple.train.stages import rate, stage_steps
from unidecouple.train.train import train


def weights(folder: Path, file: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(all_checkpoints(folder)[-1] / file)


def test_a_longer_run_is_the_same_run(small_run: RunConfig, run: Run, small_cache: Path, tmp_path: Path) -> None:
    """With a constant rate, also if it is interrupted on the way; the first end's scores stay beside the new ones."""
    whole = replace(small_run, ema_decay=0.5, stages=(replace(small_run.stages[0], lr_scheduler_type="constant"),), report_to=())
    assert run(replace(whole, max_steps=5), tmp_path / "whole")
    assert run(replace(whole, max_steps=2), tmp_path / "parts")
    first = (tmp_path / "parts" / "scores.json").read_text()
    longer = replace(whole, max_steps=5, logging_steps=2)  # how often it logs may change
    assert not run(longer, tmp_path / "parts", stop_after=4)
    said: list[str] = []
    train(longer, tmp_path / "parts", small_cache, said.append, threading.Event())
    assert any(line.startswith("resuming from") for line in said)
    for file in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        ours, theirs = weights(tmp_path / "parts", file), weights(tmp_path / "whole", file)
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert (tmp_path / "parts" / "scores-2.json").read_text() == first
    assert json.loads((tmp_path / "parts" / "scores.json").read_text())["step"] == 5
    assert config.load(RunConfig, [tmp_path / "parts" / "run.yaml"]).extended_from == 2
    with pytest.raises(ValueError, match=r"max_steps: 5, not 4"):
        run(replace(longer, max_steps=4), tmp_path / "parts")
    with pytest.raises(ValueError, match=r"seed: 0, not 7"):
        run(replace(longer, max_steps=9, seed=7), tmp_path / "parts")


def test_only_the_last_stage_grows_and_its_schedule_is_the_longer_one(small_run: RunConfig) -> None:
    """10 steps in shares of a half are 5 and 5; of 16, the first keeps its 5. The cosine at its step 5 of 11 follows."""
    ended = replace(small_run, structure=TaskAwareMoE(), stages=APART_THEN_JOINT, max_steps=10)
    longer = replace(ended, max_steps=16, extended_from=10)
    assert [steps for _, steps in stage_steps(ended)] == [5, 5]
    assert [steps for _, steps in stage_steps(longer)] == [5, 11]
    assert rate(APART_THEN_JOINT[1], 5, 11) == pytest.approx(0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * 5 / 11)))


def test_a_run_that_has_not_ended_or_kept_no_optimizer_does_not_continue(small_run: RunConfig, run: Run, tmp_path: Path) -> None:
    one = replace(small_run, max_steps=2, save_only_model=True, report_to=())
    assert not run(one, tmp_path / "begun", stop_after=1)
    with pytest.raises(ValueError, match=r"A run continues with a higher max_steps when it has ended"):
        run(replace(one, max_steps=3), tmp_path / "begun")
    assert run(one, tmp_path / "begun")
    assert not (all_checkpoints(tmp_path / "begun")[-1] / "optimizer.safetensors").exists()
    with pytest.raises(ValueError, match=r"kept no optimizer\.safetensors at its end .*--model"):
        run(replace(one, max_steps=3), tmp_path / "begun")
    assert (tmp_path / "begun" / "scores.json").is_file()
