"""A run of both stages, saved as adapters of where it started and of where its second stage did."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from small_runs import APART_THEN_JOINT, FEW
from unidecouple.cli import main
from unidecouple.convert.stored import all_checkpoints
from unidecouple.methods.structure import TaskAwareMoE
from unidecouple.run import Evaluation, RunConfig
from unidecouple.train.train import train
from unidecouple.world.settings import SyntheticData

pytestmark = pytest.mark.slow  # its fixture is a whole comparison, or a run


@pytest.fixture(scope="module")
def ran(small_base: Path, small_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = RunConfig(
        model_name_or_path=str(small_base),
        structure=TaskAwareMoE(),
        data=SyntheticData(pairs=24, scenes=24, t2i_batch_size=4, mmu_batch_size=2, turns=1, evaluation=FEW),
        stages=APART_THEN_JOINT,
        evaluation=Evaluation(eval_steps=0),
        max_steps=4,
        save_steps=0,
        save_total_limit=2,
        diagnose=False,
        seed=3,
        device="cpu",
    )
    folder = tmp_path_factory.mktemp("run")
    train(config, folder, small_cache, lambda line: None, threading.Event())
    return folder


def test_of_its_start_only_with_experts(ran: Path, small_base: Path, same_checkpoint: Any, tmp_path: Path, capsys: Any) -> None:
    """Base, structure and seed are the run's own."""
    command = ["adapter", "save", str(ran), "--output", str(tmp_path / "adapter")]
    assert main(command) == 1
    assert "training changed experts" in capsys.readouterr().err
    assert not (tmp_path / "adapter").exists()
    assert main([*command, "--with-experts"]) == 0
    assert "becomes ta_moe first" in capsys.readouterr().out
    assert main(["adapter", "load", str(small_base), str(tmp_path / "adapter"), "--output", str(tmp_path / "out")]) == 0
    assert same_checkpoint(tmp_path / "out", all_checkpoints(ran)[-1])


def test_of_its_second_stage_it_is_small_and_for_peft(ran: Path, same_checkpoint: Any, tmp_path: Path, capsys: Any) -> None:
    apart, joint = all_checkpoints(ran)
    assert main(["adapter", "save", str(ran), "--base", str(apart), "--output", str(tmp_path / "adapter")]) == 0
    said = capsys.readouterr().out
    assert "PEFT reads it" in said
    assert not any(line.split()[:1] == ["experts"] for line in said.splitlines())
    assert main(["adapter", "load", str(apart), str(tmp_path / "adapter"), "--output", str(tmp_path / "out")]) == 0
    assert same_checkpoint(tmp_path / "out", joint)
