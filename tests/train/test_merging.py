"""``unidecouple merge`` on two runs of one task each."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from small_runs import Run, load_copy
from unidecouple import config as configs
from unidecouple.batch import Task
from unidecouple.cli import main
from unidecouple.convert.load import checkpoint_folder, load
from unidecouple.methods.merging import MERGINGS, TaskArithmetic
from unidecouple.models.base import UnifiedModel
from unidecouple.run import RunConfig
from unidecouple.train import merging
from unidecouple.train.build import load_with_tokens
from unidecouple.train.merging import choose_scale, merge_checkpoints


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint_folder(str(folder)) / "model.safetensors")


def test_the_scale_is_where_the_loss_is_least(small_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a loss whose minimum is known: at half of what the rule adds to a weight, and the model is the base's again after it."""
    model, _ = load_copy(str(small_base))
    name = "model.language_model.norm.weight"
    before = {one: weight.clone() for one, weight in model.state_dict().items()}
    tuned = [before | {name: before[name] + 2}, before]

    def loss(model: UnifiedModel, task: Task, samples: object) -> float:
        return float((model.state_dict()[name] - before[name] - 3).square().mean())

    monkeypatch.setattr(merging, "_loss", loss)
    lines: list[str] = []
    scale = choose_scale(TaskArithmetic().rule, model, tuned, dict.fromkeys(Task, ()), lines.append)
    assert scale == pytest.approx(1.5, abs=0.05)
    assert len(lines) == 24
    assert all(torch.equal(weight, before[one]) for one, weight in model.state_dict().items())


def test_models_with_added_words_merge(small_base: Path, tmp_path: Path) -> None:
    """The base gets the words' rows, the mean of the others, and half of each model's change. By hand: 0.5 x (2 - 4) = -1."""
    words, table = ["dax", "wug"], "model.language_model.embed_tokens.weight"
    for name, change in (("one", 2.0), ("two", -4.0)):
        model, processor = load_with_tokens(str(small_base), words)
        rows = model.state_dict()[table]
        start = rows.clone()
        rows[-1] += change
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    tuned = [str(tmp_path / name) for name in ("one", "two")]
    merge_checkpoints(str(small_base), tuned, tmp_path / "both", TaskArithmetic(scale=0.5), None, tmp_path / "cache", print)
    torch.testing.assert_close(weights(tmp_path / "both")[table], torch.cat([start[:-1], start[-1:] - 1]))
    _, processor = load(str(tmp_path / "both"))
    assert set(words) <= processor.tokenizer.get_vocab().keys()
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.slow
def test_every_method_merges(small_run: RunConfig, run: Run, small_cache: Path, tmp_path: Path) -> None:
    """Each gives finite weights of a model that loads, keeps what no model changed, and moves what both did."""
    small_run = replace(small_run, max_steps=2, data=replace(small_run.data, router_aux_samples=0))
    for task in ("mmu", "t2i"):
        assert run(replace(small_run, stages=(replace(small_run.stages[0], tasks=task),)), tmp_path / task)
    base, one, two = small_run.model_name_or_path, str(tmp_path / "mmu"), str(tmp_path / "t2i")
    start, mmu, t2i = (weights(folder) for folder in (base, one, two))
    both = {name for name in start if not torch.equal(mmu[name], start[name]) and not torch.equal(t2i[name], start[name])}
    still = {name for name in start if torch.equal(mmu[name], start[name]) and torch.equal(t2i[name], start[name])}
    assert both
    few = {"steps": 1, "batch_size": 2, "adamerging_steps": 1, "samples": 2}
    for member in MERGINGS:
        known = {field.name for field in fields(member)}
        method = member(**{name: value for name, value in few.items() if name in known})
        lines: list[str] = []
        merge_checkpoints(base, [two, one], tmp_path / method.kind, method, small_run, small_cache, lines.append)
        found = weights(tmp_path / method.kind)
        assert all(bool(weight.isfinite().all()) for weight in found.values() if weight.is_floating_point())
        assert all(torch.equal(found[name], start[name]) for name in still), method.kind
        assert any(not torch.equal(found[name], start[name]) for name in both), method.kind
        load(str(tmp_path / method.kind))
        if method.kind == "esm":
            assert f"inputs: t2i for {checkpoint_folder(two)}, mmu for {checkpoint_folder(one)}" in lines
            assert sum(line.startswith("scale ") for line in lines) == 24


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
