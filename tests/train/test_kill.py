"""kill -9 at random moments, in steps and in saves: a loadable checkpoint stays, and the run goes on exactly."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from small_runs import APART_THEN_JOINT, FEW, NOT_SCORED
from unidecouple.convert.load import load
from unidecouple.convert.stored import all_checkpoints
from unidecouple.methods.structure import TaskAwareMoE
from unidecouple.run import RunConfig
from unidecouple.train.train import train
from unidecouple.world.scoring import Scorer

KILLS = 8


def attempt(config: RunConfig, folder: Path, cache: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scorer, "test", NOT_SCORED)
        train(config, folder, cache, lambda line: None, threading.Event())


def losses(folder: Path) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss/mmu"], line["loss/t2i"]) for line in lines]


def newest(folder: Path) -> int:
    return max((int(path.name.split("-")[1]) for path in all_checkpoints(folder)), default=0)


@pytest.mark.slow
def test_a_run_killed_before_any_checkpoint_logs_each_step_once(small_run: RunConfig, small_cache: Path, tmp_path: Path) -> None:
    scored = replace(small_run.evaluation, eval_steps=2)
    data = replace(small_run.data, evaluation=replace(FEW, eval_images=2, eval_prompts=1))
    experts = replace(small_run.stages[0], train={"experts": 1, "expert_router": 1})
    config = replace(
        small_run, structure=TaskAwareMoE(), stages=(experts,), data=data, evaluation=scored, max_steps=3, save_steps=3
    )

    def killed() -> None:
        def say(line: str) -> None:
            if line.startswith("step 2/"):
                os.kill(os.getpid(), signal.SIGKILL)

        train(config, tmp_path, small_cache, say, threading.Event())

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not all_checkpoints(tmp_path)
    attempt(config, tmp_path, small_cache)
    for name, expected in (("metrics.jsonl", [1, 2, 3]), ("routing.jsonl", [1, 2, 3]), ("scores.jsonl", [0, 2])):
        rows = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        once = [row["step"] for row in rows if row.get("benchmark") == rows[0].get("benchmark")]
        assert once == expected, name


@pytest.mark.slow
def test_killed_runs_lose_nothing(small_run: RunConfig, small_cache: Path, tmp_path: Path) -> None:
    """A checkpoint every step, so that about half of the time goes into saves."""
    config = replace(small_run, structure=TaskAwareMoE(), stages=APART_THEN_JOINT, save_steps=1, save_total_limit=2, max_steps=24)
    attempt(config, tmp_path / "whole", small_cache)
    rng, context = random.Random(0), multiprocessing.get_context("fork")  # a fork has torch loaded: kills fall into the run
    killed, in_save = 0, 0
    folder = tmp_path / "killed"
    while killed < KILLS:
        process = context.Process(target=attempt, args=(config, folder, small_cache))
        process.start()
        until = newest(folder) + rng.choice((0, 1, 1, 2))  # 0: before the first step of this attempt is saved
        while process.is_alive() and newest(folder) < until:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        if process.exitcode == 0:  # it got through: start over, there are kills left
            assert losses(folder) == losses(tmp_path / "whole")
            folder = tmp_path / f"killed{killed}"
            continue
        killed += 1
        in_save += bool([*folder.glob(".checkpoint-*")])
        for path in all_checkpoints(folder):
            load(str(path))
    assert in_save, "no kill fell into a save"
    attempt(config, folder, small_cache)
    assert losses(folder) == losses(tmp_path / "whole")
    assert not [*folder.glob(".checkpoint-*")]
    whole, resumed = (load_file(all_checkpoints(path)[-1] / "model.safetensors") for path in (tmp_path / "whole", folder))
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
