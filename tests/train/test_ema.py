"""Averaged weights: the formula by hand, over stages, and the model that `unidecouple export --ema` writes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from small_runs import APART_THEN_JOINT, Run
from unidecouple.cli import main
from unidecouple.convert.load import load
from unidecouple.convert.stored import all_checkpoints
from unidecouple.methods.structure import TaskAwareMoE
from unidecouple.run import RunConfig
from unidecouple.train.ema import AVERAGES, EMA
from unidecouple.train.parallel import Parallel


def test_average_by_hand() -> None:
    model = nn.Linear(1, 1).requires_grad_(False)
    model.weight.requires_grad_(True)
    model.weight.data.fill_(8.0)
    averages = EMA(0.75, model, Parallel(), None)
    seen = []
    for weight in (0.0, 4.0):
        model.weight.data.fill_(weight)
        averages.update()
        seen.append(averages.means["weight"].item())
    assert seen == [6.0, 5.5]  # 0.75 x 8 + 0.25 x 0, then 0.75 x 6 + 0.25 x 4
    assert list(averages.tensors()) == ["weight|ema"]


def test_kept_in_float32_and_a_frozen_weight_stays_to_the_last_bit() -> None:
    model = nn.Linear(64, 1, dtype=torch.bfloat16)
    averages = EMA(0.999, model, Parallel(), None)
    for _ in range(20):
        averages.update()
    assert averages.means["weight"].dtype == torch.float32
    assert torch.equal(averages.means["weight"], model.weight.float())


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def averages_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {name.removesuffix("|ema"): mean for name, mean in load_file(checkpoint / AVERAGES).items()}


def test_a_run_averages_whole_models_over_both_stages(small_run: RunConfig, run: Run, small_cache: Path, tmp_path: Path) -> None:
    """With every step saved, ``ema <- d ema + (1 - d) w`` from the saved weights alone; experts, frozen in stage 2, go on."""
    config = replace(small_run, structure=TaskAwareMoE(), stages=APART_THEN_JOINT, ema_decay=0.75, save_steps=1, save_total_limit=9)
    assert run(config, tmp_path / "run")
    steps = all_checkpoints(tmp_path / "run")
    assert len(steps) == config.max_steps
    for before, after in itertools.pairwise(steps):
        means, earlier, now = averages_of(after), averages_of(before), weights(after)
        fresh = means.keys() - earlier.keys()
        assert all("lora" in name for name in fresh)
        for name in means.keys() - fresh:
            torch.testing.assert_close(means[name], 0.75 * earlier[name] + 0.25 * now[name], atol=1e-6, rtol=1e-5)
    gone_on = [name for name in means if name.endswith("experts.gate_up_proj")]
    assert gone_on
    assert all(not torch.equal(averages_of(steps[-1])[name], averages_of(steps[2])[name]) for name in gone_on)
    assert all(torch.equal(weights(steps[-1])[name], weights(steps[2])[name]) for name in gone_on)

    assert main(["export", str(tmp_path / "run"), "--ema", "--output", str(tmp_path / "out")]) == 0
    exported, last = load(str(tmp_path / "out"))[0].state_dict(), weights(steps[-1])
    for name, weight in exported.items():
        if "vqmodel" not in name:
            assert torch.equal(weight, means.get(name, last[name])), name


def test_mistakes_are_named(small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(small_base), "--ema", "--output", str(tmp_path / "out")]) == 1
    assert "has no ema.safetensors: the run kept no averages. Set ema_decay" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"ema_decay=1\.0 must lie between 0 and 1"):
        RunConfig(ema_decay=1.0)
