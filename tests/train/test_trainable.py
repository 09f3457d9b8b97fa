"""Experts of one task at a time: half of the gradients and states, and the weights of joint training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from small_runs import Run
from step_settings import step_settings
from unidecouple.batch import Batch, Task
from unidecouple.convert.stored import all_checkpoints
from unidecouple.methods.objective import Objective
from unidecouple.methods.optimizers import make_optimizer
from unidecouple.methods.stage import Stage
from unidecouple.methods.structure import TaskAwareMoE
from unidecouple.models.experts import TrainedRows
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.run import RunConfig
from unidecouple.train import stages
from unidecouple.train.step import train_step
from unidecouple.train.trainable import make_param_groups, train_all_rows, train_present_rows

TRAIN = {"experts": 1.0}


def trained(
    model: UniJanusForConditionalGeneration, batch: tuple[Batch, Batch], tasks: tuple[Task, ...], optim: str, alone: bool
) -> UniJanusForConditionalGeneration:
    """``model`` after three steps on the samples of ``tasks``."""
    groups = make_param_groups(model, TRAIN, 1e-2)
    if alone:
        train_present_rows(model, groups, [task for task in Task if task not in tasks])
    optimizer = make_optimizer(optim, groups, 0.0)
    for step in range(3):
        parts = [tuple(batch[task] for task in tasks)]
        train_step(model, optimizer, parts, step_settings(Objective(auxiliary=()), tasks, "label", 1e9), step + 1)
    if alone:
        assert all(isinstance(weight, TrainedRows) for group in optimizer.param_groups for weight in group["params"])
    train_all_rows(model)
    return model


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_8bit"])
def test_one_task_after_the_other_is_joint_training_where_they_share_nothing(
    optim: str, make_model: Callable[..., UniJanusForConditionalGeneration], joint_batch: tuple[Batch, Batch]
) -> None:
    """Only the last layer has experts: the BOS, which counts as understanding, reaches no other token after it."""
    if optim == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    start = make_model(ffn="ta_moe", moe_layers=[1])
    joint = trained(copy.deepcopy(start), joint_batch, tuple(Task), optim, alone=False)
    apart = copy.deepcopy(start)
    for task in Task:
        trained(apart, joint_batch, (task,), optim, alone=True)
    moved = dict(joint.named_parameters())
    for name, weight in apart.named_parameters():
        torch.testing.assert_close(weight, moved[name], rtol=0, atol=2e-5 if ".experts." in name else 0)
    begun = dict(start.named_parameters())
    for name in (name for name in begun if ".experts." in name):
        assert ((moved[name] - begun[name]).flatten(1).norm(dim=1) > 0.01).all()


def test_the_same_weights_as_with_all_rows(
    make_model: Callable[..., UniJanusForConditionalGeneration], joint_batch: tuple[Batch, Batch]
) -> None:
    start = make_model(ffn="ta_moe")
    rows, whole = (
        trained(copy.deepcopy(start), joint_batch, (Task.T2I,), "adamw_torch_fused", alone=alone) for alone in (True, False)
    )
    assert all(torch.equal(one, other) for one, other in zip(rows.parameters(), whole.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_8bit"])
def test_a_stage_of_one_task_is_resumed(optim: str, small_run: RunConfig, run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    """States are saved for all rows, so that a run goes on in processes that share the work, which train all rows."""
    if optim == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    stage = Stage("generation experts", 1.0, 1e-2, {"experts": 1, "generation": 1}, "label", tasks="t2i", warmup_steps=1)
    config = replace(small_run, structure=TaskAwareMoE(), stages=(stage,), optim=optim, max_steps=4)
    assert run(config, tmp_path / "whole")
    assert not run(config, tmp_path / "broken", 2)
    with safe_open(tmp_path / "broken" / "checkpoint-2" / "optimizer.safetensors", framework="pt") as file:
        moments = "exp_avg" if optim == "adamw_torch_fused" else "state1"
        name = f"model.language_model.layers.0.mlp.experts.down_proj|{moments}"
        assert file.get_slice(name).get_shape()[0] == 4
    if optim == "adamw_torch_fused":
        monkeypatch.setattr(stages, "train_present_rows", lambda model, groups, absent: None)
    assert run(config, tmp_path / "broken")
    whole, broken = (load_file(all_checkpoints(tmp_path / name)[-1] / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(weight, broken[name]) for name, weight in whole.items())
