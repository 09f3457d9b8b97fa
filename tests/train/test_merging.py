"""``unidecouple merge`` on two runs of one task each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from small_runs import Run
from unidecouple import config as configs
from unidecouple.cli import main
from unidecouple.convert.load import checkpoint_folder
from unidecouple.run import RunConfig


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint_folder(str(folder)) / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["task_arithmetic", "adamerging"])
def test_two_runs_become_one_model(
    method: str, small_run: RunConfig, run: Run, small_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_run = replace(small_run, max_steps=2, data=replace(small_run.data, router_aux_samples=0))
    for task in ("mmu", "t2i"):
        assert run(replace(small_run, stages=(replace(small_run.stages[0], tasks=task),)), tmp_path / task)
    (tmp_path / "recipe.yaml").write_text(configs.dump(small_run))
    base, one, two, out = small_run.model_name_or_path, *(str(tmp_path / name) for name in ("mmu", "t2i", "merged"))
    command = ["merge", base, one, two, "--output", out, "--method", method, "--scale", "0.4", "--cache", str(small_cache)]
    learned = ["--recipe", str(tmp_path / "recipe.yaml"), "--steps", "3", "--batch-size", "2"]
    if method == "adamerging":
        assert main(command) == 1
        assert "name a recipe with data" in capsys.readouterr().err
        command += learned
    assert main(command) == 0
    start, mmu, t2i, found = (weights(folder) for folder in (base, one, two, out))
    moved = {name for name in start if not torch.equal(mmu[name], start[name]) or not torch.equal(t2i[name], start[name])}
    assert len(moved) > 10
    for name, weight in found.items():
        expected = start[name] + 0.4 * (mmu[name] - start[name]) + 0.4 * (t2i[name] - start[name])
        torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6 if method == "task_arithmetic" else 1e-3)
    exact = all(torch.equal(found[name], start[name]) for name in start.keys() - moved)
    assert exact
    spent = json.loads((tmp_path / "merged" / "spent.json").read_text())
    assert min(spent["wall_seconds"], spent["cpu_seconds"]) > 0
    if method == "adamerging":
        assert "entropy" in capsys.readouterr().out
