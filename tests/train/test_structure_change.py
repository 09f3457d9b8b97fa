"""A stage that changes the structure: the mixture is parted by measured use, resumed runs are unbroken ones, plans follow."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from small_runs import MOE_THEN_SYMBIOTIC, Run
from unidecouple.batch import Task
from unidecouple.convert.load import load
from unidecouple.convert.stored import all_checkpoints
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.diagnose.routing import expert_usage
from unidecouple.methods.objective import LoadBalance, Objective
from unidecouple.methods.stage import Stage
from unidecouple.methods.structure import MoE, Rosetta, Symbiotic
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.plan.stages import PlanRequest, plan
from unidecouple.run import RunConfig
from unidecouple.source import BatchSource
from unidecouple.train.build import USAGE_BATCH, USAGE_BATCHES, apply_structure, restructure
from unidecouple.train.dry_run import describe
from unidecouple.world.batches import WorldBatches, world_batches


@pytest.fixture
def chain(small_run: RunConfig) -> RunConfig:
    objective = Objective(auxiliary=(LoadBalance(),))
    return replace(small_run, structure=MoE(), stages=MOE_THEN_SYMBIOTIC, objective=objective, ema_decay=0.9, save_total_limit=9)


@pytest.fixture
def source(small_run: RunConfig, small_cache: Path) -> WorldBatches:
    model, processor = load(small_run.model_name_or_path)
    return world_batches(small_run.data, model, SequenceBuilder(processor), 0, small_cache, lambda what, done, of: None)


def files(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(all_checkpoints(folder)[-1] / name)


def forget(folder: Path, after: int) -> None:
    """As if the run had been cut off after step ``after``."""
    (folder / "scores.json").unlink()
    for path in all_checkpoints(folder):
        if int(path.name.split("-")[1]) > after:
            shutil.rmtree(path)


@pytest.mark.slow
def test_resumed_on_either_side_of_the_change_is_the_unbroken_run(chain: RunConfig, run: Run, tmp_path: Path) -> None:
    """Six steps, the change after the third; cut off before it, at the stage's end, and after it."""
    assert run(chain, tmp_path)
    whole = {name: files(tmp_path, name) for name in ("model.safetensors", "ema.safetensors")}
    lines = (tmp_path / "metrics.jsonl").read_text().count("\n")
    for after in (4, 3, 2):
        forget(tmp_path, after)
        assert run(chain, tmp_path)
        assert (tmp_path / "metrics.jsonl").read_text().count("\n") == lines == 6
        for name, tensors in whole.items():
            again = files(tmp_path, name)
            assert again.keys() == tensors.keys()
            assert [key for key in again if not torch.equal(again[key], tensors[key])] == [], (after, name)
    sizes = [load(str(path))[0].config.text_config.expert_groups for path in all_checkpoints(tmp_path)]
    assert sizes == [(4,), (4,), (3, 1), (3, 1)]  # checkpoints 2, 3, 4, 6


def test_held_experts_stay_where_the_change_put_them(chain: RunConfig, run: Run, source: WorldBatches, tmp_path: Path) -> None:
    """Und is held from the change on (rate 0), so its rows are those of the mixture's most used experts; gen moves."""
    held = replace(MOE_THEN_SYMBIOTIC[1], group_lr_scale={"und": 0.0})
    assert run(replace(chain, stages=(MOE_THEN_SYMBIOTIC[0], held)), tmp_path)
    mixture = load(str(tmp_path / "checkpoint-3"))[0]
    usage = expert_usage(mixture, (source.task_batch(Task.MMU, USAGE_BATCH, key) for key in range(USAGE_BATCHES)))
    before, after = restructure(mixture, Symbiotic(), 0, usage).state_dict(), files(tmp_path, "model.safetensors")
    for number in range(2):
        for part in ("experts.gate_up_proj", "experts.down_proj", "gate.weight"):
            name = f"model.language_model.layers.{number}.mlp.{part}"
            assert torch.equal(after[name][:3], before[name][:3])
            if part != "gate.weight":  # a group of one has nothing to choose, so its router row learns nothing
                assert not torch.equal(after[name][3], before[name][3])


def moe(config: RunConfig) -> UniJanusForConditionalGeneration:
    return restructure(load(config.model_name_or_path)[0], MoE(), 0)


def test_without_understanding_data_there_is_nothing_to_rank_by(small_run: RunConfig) -> None:
    drawing = cast(BatchSource, SimpleNamespace(measurable=(Task.T2I,)))
    with pytest.raises(ValueError, match="no understanding data"):
        apply_structure(moe(small_run), Symbiotic(), 0, drawing)


def test_a_process_without_weights_gets_the_same_shapes(small_run: RunConfig, source: WorldBatches) -> None:
    model = moe(small_run)
    shapes = {name: p.shape for name, p in apply_structure(model, Symbiotic(), 0, source).named_parameters()}
    empty = apply_structure(model.to("meta"), Symbiotic(), 0, source)
    assert {name: p.shape for name, p in empty.named_parameters()} == shapes


def test_a_dry_run_says_what_becomes_of_the_groups(chain: RunConfig, small_cache: Path) -> None:
    said: list[str] = []
    describe(chain, small_cache, said.append)
    assert "group und      lr x 0.1" in said[2]
    wrong = replace(MOE_THEN_SYMBIOTIC[1], group_lr_scale={"mmu": 0.1})
    with pytest.raises(ValueError, match="'mmu' is no group"):
        describe(replace(chain, stages=(MOE_THEN_SYMBIOTIC[0], wrong)), small_cache, said.append)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("structure", "active"),
    [(MoE(num_experts_per_tok=2), 2), (Rosetta(), 2), (Rosetta(text_experts=1, image_out_experts=2, num_experts_per_tok=1), 1)],
    ids=repr,
)
def test_plans_count_every_group(structure: Any, active: int) -> None:
    stage = Stage(train={"experts": 1, "expert_router": 1})
    (planned,) = plan(RunConfig(model_name_or_path="janus-pro-1b", structure=structure, stages=(stage,)), PlanRequest())
    weights, text = planned.load.weights, planned.config.text_config
    expert = 3 * text.hidden_size * text.intermediate_size * text.num_hidden_layers
    router = text.num_experts * text.hidden_size * text.num_hidden_layers
    assert weights.trainable == text.num_experts * expert + router
    assert weights.total - weights.tokenizer - weights.active == (text.num_experts - active) * expert
    assert weights.private == 0


def test_a_plan_follows_the_change() -> None:
    run = RunConfig(model_name_or_path="janus-pro-1b", structure=MoE(), stages=MOE_THEN_SYMBIOTIC)
    before, after = (stage.config.text_config for stage in plan(run, PlanRequest()))
    assert (before.expert_groups, after.expert_groups) == ((4,), (3, 1))
