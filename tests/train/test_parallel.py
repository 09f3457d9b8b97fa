"""One run on several processes, or in several parts, is the run of one process; checkpoints do not know how many wrote them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ranks import assert_close_weights, train_on_ranks
from small_runs import APART_THEN_JOINT, MOE_THEN_SYMBIOTIC, Run
from step_settings import run_stages
from unidecouple import config as configs
from unidecouple.batch import Task
from unidecouple.convert.load import load
from unidecouple.convert.stored import all_checkpoints
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.methods.objective import AttentionAlignment, GroupRouterLoss, LoadBalance, Objective
from unidecouple.methods.stage import Lora
from unidecouple.methods.structure import MoE, TaskAwareMoE, UniX
from unidecouple.models.router import TaskAwareRouter
from unidecouple.run import RunConfig
from unidecouple.train.parallel import Parallel
from unidecouple.train.routing_log import read_routing_log
from unidecouple.train.stages import Trainer
from unidecouple.world.batches import world_batches
from unidecouple.world.settings import SyntheticData

MEASURED = (
    *("loss/mmu", "loss/t2i", "loss/group", "loss/aia_mmu", "loss/aia_t2i"),
    *("grad_norm", "router_accuracy/mmu", "router_accuracy/t2i"),
)


@pytest.fixture
def decoupled(small_run: RunConfig) -> RunConfig:
    """Two stages and all terms of the loss that are means; no batch size is a multiple of two and more processes."""
    data = replace(small_run.data, t2i_batch_size=7, mmu_batch_size=5, router_aux_samples=5, cond_dropout_prob=0.3)
    objective = Objective(auxiliary=(GroupRouterLoss(), AttentionAlignment(mmu_coeff=2.0, t2i_coeff=1.0)))
    structure = TaskAwareMoE(context_router=True)
    run = replace(small_run, structure=structure, data=data, objective=objective, stages=APART_THEN_JOINT)
    return replace(run, max_steps=4, save_steps=3, save_total_limit=9, ema_decay=0.5)


def torchrun(processes: int, run: RunConfig, folder: Path, cache: Path) -> None:
    """Start ``run`` by its command on gloo processes of one thread each."""
    recipe = folder.parent / f"{folder.name}.yaml"
    recipe.write_text(configs.dump(run))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m", "unidecouple"]
    command += ["train", str(recipe), "--output", str(folder), "--cache", str(cache)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def measured(folder: Path, names: tuple[str, ...] = MEASURED) -> list[list[float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [[line[name] for name in names] for line in lines]


def routed(folder: Path) -> list[float]:
    """Every expert's share of every task's tokens in every layer at every step."""
    shares = [row["expert_share"] for record in read_routing_log(folder) for row in record["layers"]]
    return [value for share in shares for task in sorted(share) for value in share[task]]


def compare(folder: Path, other: Path, names: tuple[str, ...] = MEASURED) -> None:
    """Six digits of every loss and gradient norm at every step, and the weights and their averages at the end."""
    for one, two in zip(measured(folder, names), measured(other, names), strict=True):
        assert one == pytest.approx(two, rel=2e-6, abs=1e-9)
    assert routed(folder) == pytest.approx(routed(other), abs=0.02), "a token at a tie may go either way"
    for file in ("model.safetensors", "ema.safetensors"):
        ours, theirs = (load_file(all_checkpoints(path)[-1] / file) for path in (folder, other))
        assert_close_weights(ours, theirs)


def forget(folder: Path, after: int) -> None:
    """As if the run had been cut off after step ``after``."""
    (folder / "scores.json").unlink()
    for path in all_checkpoints(folder):
        if int(path.name.split("-")[1]) > after:
            shutil.rmtree(path)


@pytest.mark.slow
def test_parts_of_a_step_change_nothing(decoupled: RunConfig, run: Run, tmp_path: Path) -> None:
    assert run(decoupled, tmp_path / "whole")
    assert run(replace(decoupled, gradient_accumulation_steps=3), tmp_path / "parts")
    compare(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize(("balance", "cuts", "warned"), [(0.01, 2, True), (0.0, 2, False), (0.01, 1, False)])
def test_balance_in_parts_is_told(
    balance: float, cuts: int, warned: bool, small_run: RunConfig, small_cache: Path, tmp_path: Path
) -> None:
    """Each part is balanced by itself, so it is the one loss that depends on how a step is cut."""
    data = replace(small_run.data, router_aux_samples=0)
    config = replace(
        small_run,
        data=data,
        objective=Objective(auxiliary=(GroupRouterLoss(), LoadBalance(coeff=balance))),
        gradient_accumulation_steps=cuts,
        max_steps=1,
    )
    model, processor = load(config.model_name_or_path)
    source = world_batches(data, model, SequenceBuilder(processor), 0, small_cache, lambda what, done, of: None)
    lines: list[str] = []
    run_stages(Trainer(config, model, processor, source, tmp_path, lines.append))
    assert [line for line in lines if line.startswith("warning: the loss 'load_balance'")] == lines[:1] * warned


@pytest.mark.slow
def test_recomputed_layers_change_nothing(decoupled: RunConfig, run: Run, tmp_path: Path) -> None:
    assert run(decoupled, tmp_path / "kept")
    assert run(replace(decoupled, gradient_checkpointing=True), tmp_path / "recomputed")
    compare(tmp_path / "recomputed", tmp_path / "kept")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_processes_change_nothing(kind: str, decoupled: RunConfig, run: Run, small_cache: Path, tmp_path: Path) -> None:
    """Two processes equal one; four go on where two were cut off, and one where four were."""
    together = replace(decoupled, parallel=kind)
    assert run(together, tmp_path / "one")
    train_on_ranks(2, together, tmp_path / "several", small_cache)
    compare(tmp_path / "several", tmp_path / "one")
    if kind == "fsdp":  # with ddp, other tests accumulate
        train_on_ranks(2, replace(together, gradient_accumulation_steps=2), tmp_path / "parts", small_cache)
        compare(tmp_path / "parts", tmp_path / "one")
    if kind == "fsdp":  # whose checkpoints are shared out anew; ddp's are whole
        forget(tmp_path / "several", after=3)
        train_on_ranks(4, together, tmp_path / "several", small_cache)
        compare(tmp_path / "several", tmp_path / "one")
    forget(tmp_path / "several", after=3)
    assert run(together, tmp_path / "several")
    compare(tmp_path / "several", tmp_path / "one")


@pytest.mark.slow
def test_torchrun_starts_the_command(small_run: RunConfig, run: Run, small_cache: Path, tmp_path: Path) -> None:
    """The command as users start it; the other tests here fork their processes."""
    small_run = replace(small_run, data=replace(small_run.data, router_aux_samples=0), max_steps=2, ema_decay=0.5)
    assert run(small_run, tmp_path / "one")
    torchrun(2, small_run, tmp_path / "two", small_cache)
    compare(tmp_path / "two", tmp_path / "one", ("loss/mmu", "loss/t2i", "grad_norm"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_processes_part_a_mixture_alike(kind: str, decoupled: RunConfig, run: Run, small_cache: Path, tmp_path: Path) -> None:
    """Experts are balanced over both processes, ranked once, and slowed where each process has them; cut off at the change, too."""
    objective = Objective(auxiliary=(LoadBalance(coeff=0.1),))
    parted = replace(decoupled, structure=MoE(), stages=MOE_THEN_SYMBIOTIC, objective=objective, parallel=kind)
    names = ("loss/mmu", "loss/t2i", "loss/balance", "grad_norm")
    assert run(parted, tmp_path / "one")
    train_on_ranks(2, parted, tmp_path / "two", small_cache)
    compare(tmp_path / "two", tmp_path / "one", names)
    forget(tmp_path / "two", after=2)
    train_on_ranks(2, parted, tmp_path / "two", small_cache)
    compare(tmp_path / "two", tmp_path / "one", names)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_weights_that_no_sample_reaches(kind: str, small_run: RunConfig, run: Run, small_cache: Path, tmp_path: Path) -> None:
    """Generation data only, but vision tower and text head train: no process waits for their gradients."""
    data = replace(small_run.data, mmu_batch_size=0, router_aux_samples=0, t2i_batch_size=3)
    stages = (replace(small_run.stages[0], train={"*": 1.0}),)
    alone = replace(small_run, data=data, stages=stages, max_steps=2, parallel=kind)
    assert run(alone, tmp_path / "one")
    train_on_ranks(2, alone, tmp_path / "two", small_cache)
    names = ("loss/t2i", "grad_norm")
    for one, two in zip(*((tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")), strict=True):
        assert [json.loads(one)[name] for name in names] == pytest.approx([json.loads(two)[name] for name in names], rel=1e-6)


@pytest.mark.slow
def test_untied_layers_on_two_processes(small_run: RunConfig, run: Run, small_cache: Path, tmp_path: Path) -> None:
    """Rows that are not evenly of both groups; attention within the group; sets sharded by their second dimension, one held."""
    data = replace(small_run.data, t2i_batch_size=3, mmu_batch_size=2, router_aux_samples=0)
    stages = tuple(replace(stage, group_lr_scale={"text": 0.0, "image": 0.5}) for stage in small_run.stages)
    together = replace(small_run, structure=UniX(), data=data, stages=stages, max_steps=3, ema_decay=0.5, parallel="fsdp")
    assert run(together, tmp_path / "one")
    train_on_ranks(2, together, tmp_path / "two", small_cache)
    compare(tmp_path / "two", tmp_path / "one", ("loss/mmu", "loss/t2i", "grad_norm"))


def test_more_parts_than_samples_is_an_error(small_run: RunConfig, run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps=2\).*smallest batch size is 1"):
        run(replace(small_run, gradient_accumulation_steps=2), tmp_path)


@pytest.mark.slow
def test_bf16_is_close_and_keeps_what_must_be_exact(decoupled: RunConfig, run: Run, tmp_path: Path) -> None:
    decoupled = replace(decoupled, stages=(APART_THEN_JOINT[0], replace(APART_THEN_JOINT[1], lora=Lora(8))))
    assert run(decoupled, tmp_path / "float32")
    assert run(replace(decoupled, bf16=True), tmp_path / "bf16")
    first = (lines[0] for lines in (measured(tmp_path / "float32"), measured(tmp_path / "bf16")))
    exact, rounded = next(first), next(first)
    assert rounded[:3] == pytest.approx(exact[:3], rel=0.02)
    assert rounded != exact
    model, _ = load(str(all_checkpoints(tmp_path / "bf16")[-1]))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    router, x = TaskAwareRouter(8, 2), torch.randn(5, 8)
    torch.nn.init.normal_(router.weight)
    with torch.autocast("cpu", torch.bfloat16):
        routed = router(x)
    torch.testing.assert_close(routed, x @ router.weight.T)


def test_rows_too_short_for_bf16_are_refused(decoupled: RunConfig, run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'joint': r=4 on experts must be a multiple of 8"):
        run(replace(decoupled, bf16=True), tmp_path)


def test_each_process_has_its_own_rows(decoupled: RunConfig) -> None:
    """Every part of every process together is the step, none twice."""

    class Numbers:
        tasks = tuple(Task)

        def batch(self, step: int, part: int, of: int, tasks: tuple[Task, ...]) -> tuple[Part, ...]:
            return (Part(range(12)[part::of]),)

    class Part(list[int]):
        def to(self, device: object) -> Part:
            return self

    seen: list[int] = []
    for rank in range(3):
        config = replace(decoupled, data=SyntheticData(), gradient_accumulation_steps=2)
        trainer = Trainer(config, None, None, Numbers(), Path(), print, parallel=Parallel(rank, 3))  # type: ignore[arg-type]
        seen += [number for parts in trainer._share(0) for part in parts for number in part]
    assert sorted(seen) == list(range(12))
