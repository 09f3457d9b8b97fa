"""Task gradients in whole steps: what is combined, what is summed, however a step is cut; stages of one task; shields."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conftest import MakeModel
from ranks import assert_close_weights, train_on_ranks
from small_runs import APART_THEN_JOINT, Run
from step_settings import step_settings
from unidecouple.batch import Batch, Task
from unidecouple.convert.stored import all_checkpoints
from unidecouple.methods.gradient import MAOP, Gradient, PCGrad, Sum, TorchJDAggregator
from unidecouple.methods.objective import GroupRouterLoss, LoadBalance, Losses, Objective
from unidecouple.methods.stage import GradientShielding, Lora
from unidecouple.methods.structure import MoE, TaskAwareMoE
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.run import RunConfig
from unidecouple.train.gradients import Gradients
from unidecouple.train.parallel import Parallel
from unidecouple.train.sharded import Sharded
from unidecouple.train.step import train_step
from unidecouple.train.trainable import make_param_groups

BY_TASK_SUM = TorchJDAggregator(name="Sum", scale=1.0)
TA_MOE = {"ffn": "ta_moe", "shared_expert": True, "task_routing": "label"}
BALANCED = Objective(auxiliary=(GroupRouterLoss(), LoadBalance(coeff=0.1)))
EVERYTHING = {"attention": 1, "norms": 1, "generation": 1, "text_head": 1, "vision": 1, "embeddings": 1}
Joint = tuple[Batch, Batch]


def stepped(
    model: UniJanusForConditionalGeneration,
    strategy: Gradient,
    parts: Sequence[tuple[Batch, ...]],
    tasks: Sequence[Task] = tuple(Task),
    train: dict[str, float] = EVERYTHING,
    objective: Objective = BALANCED,
) -> dict[str, Tensor]:
    """What the optimizer sees in one step that moves nothing."""
    groups = make_param_groups(model, train, 0.0)
    gradients = Gradients.of(model, strategy, Parallel())
    train_step(model, torch.optim.SGD(groups, lr=0.0), parts, step_settings(objective, tasks, "label", 1e9, gradients))
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def against(coefficient: float) -> Objective:
    """Generation's loss is to grow, so that the tasks conflict; no recipe can say so."""
    objective = Objective()
    object.__setattr__(objective, "t2i_coeff", -coefficient)
    return objective


def close(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, two[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("text", [{}, TA_MOE, {"ffn": "moe"}], ids=["dense", "ta_moe", "moe"])
def test_task_by_task_comes_to_the_same_sum(text: dict[str, object], make_model: MakeModel, joint_batch: Joint) -> None:
    """Router losses and load balance included; another backward pass a task, nothing else."""
    train = {**EVERYTHING, **({"experts": 1, "expert_router": 1, "shared_expert": 1, "alpha": 1} if text else {"ffn": 1})}
    whole, by_task = (stepped(make_model(**text), strategy, [joint_batch], train=train) for strategy in (Sum(), BY_TASK_SUM))
    close(by_task, whole)


def test_total_adds_in_the_order_of_eq_2() -> None:
    """Bit for bit what was summed before tasks were separated."""
    mmu, t2i, group, balance = torch.tensor([0.1, 0.7, 0.3, 1e-8]).unbind()
    losses = Losses({"mmu": mmu, "t2i": t2i}, [group, balance], {})
    assert torch.equal(losses.total, torch.stack([mmu, t2i]).sum() + group + balance)


def test_pcgrad_on_what_both_tasks_share(make_model: MakeModel, joint_batch: Joint) -> None:
    """A reference by hand. Heads, vision, experts, their router and whatever one task alone reaches are summed and do not count."""
    model = make_model(**TA_MOE)
    train = {**EVERYTHING, "experts": 1, "expert_router": 1, "shared_expert": 1}
    make_param_groups(model, train, 0.0)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    output = model(batch=joint_batch, routing="label")
    rows = [
        torch.autograd.grad(output.loss(task), [*named.values()], retain_graph=True, allow_unused=True, materialize_grads=True)
        for task in Task
    ]
    mmu, t2i = (dict(zip(named, row, strict=True)) for row in rows)
    shared = [n for n in named if "language_model" in n and ".experts." not in n and ".gate." not in n]
    shared = [n for n in shared if mmu[n].any() and t2i[n].any()]
    assert {n.split(".")[-2] for n in shared} >= {"q_proj", "down_proj", "norm", "input_layernorm"}
    one, two = (torch.cat([g[n].flatten() for n in shared]).double() for g in (mmu, t2i))
    sign = -1.0 if one @ two > 0 else 1.0  # a conflict, whichever way the random weights lean
    objective = Objective(t2i_coeff=sign, auxiliary=())
    dot = sign * (one @ two)
    expected = {n: mmu[n] + sign * t2i[n] for n in named}
    for n in shared:
        expected[n] = (1 - dot / (one @ one)) * mmu[n] + (1 - dot / (two @ two)) * sign * t2i[n]
    assert dot < 0
    close(stepped(model, PCGrad(), [joint_batch], train=train, objective=objective), {n: g.float() for n, g in expected.items()})


def test_only_where_asked(make_model: MakeModel, joint_batch: Joint) -> None:
    objective = against(1.0)
    plain, some, every = (
        stepped(make_model(), strategy, [joint_batch], objective=objective)
        for strategy in (Sum(), PCGrad(parameters=("*.layers.0.self_attn.*",)), PCGrad())
    )
    assert {n for n in plain if not torch.allclose(plain[n], some[n])} <= {n for n in plain if ".layers.0.self_attn." in n}
    assert any(not torch.allclose(plain[n], every[n]) for n in plain if ".layers.1." in n) or torch.equal(
        plain["lm_head.weight"], every["lm_head.weight"]
    )
    with pytest.raises(ValueError, match=r"gradient 'maop' on weights that train: '\*\.mlp\.shared_expert\.\*' matches no weight"):
        stepped(make_model(), MAOP(), [joint_batch])


@pytest.mark.parametrize("strategy", [PCGrad(), TorchJDAggregator(name="UPGrad")], ids=["pcgrad", "upgrad"])
def test_parts_and_recomputed_layers_change_nothing(strategy: Gradient, make_model: MakeModel, joint_batch: Joint) -> None:
    """Signs are decided on the whole step's gradients, not on a part's."""
    objective = against(0.5)
    whole = stepped(make_model(), strategy, [joint_batch], objective=objective)
    apart = stepped(make_model(), strategy, [(joint_batch[0],), (joint_batch[1],)], objective=objective)
    close(apart, whole)
    model = make_model().train()
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # its new name is not in transformers 5.22
        model.gradient_checkpointing_enable({"use_reentrant": False})
    close(stepped(model, strategy, [joint_batch], objective=objective), whole)


def test_gradients_that_are_sharded_are_refused(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="parallel=fsdp no process has it: use ddp"):
        Gradients.of(make_model(), PCGrad(), Sharded())
    assert Gradients.of(make_model(), Sum(), Sharded()).strategy == Sum()


def final(folder: Path) -> dict[str, Tensor]:
    return load_file(all_checkpoints(folder)[-1] / "model.safetensors")


def same(one: Path, two: Path, exact: bool) -> None:
    found, expected = final(one), final(two)
    if exact:
        assert found.keys() == expected.keys()
        assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    else:
        assert_close_weights(found, expected, learning_rate=1e-3)


@pytest.fixture
def conflicting(small_run: RunConfig) -> RunConfig:
    """A run whose tasks pull against each other in some step."""
    return replace(
        small_run,
        data=replace(small_run.data, mmu_batch_size=4, router_aux_samples=0),
        stages=(replace(small_run.stages[0], learning_rate=1e-3, gradient=PCGrad()),),
        max_steps=4,
        save_total_limit=9,
    )


@pytest.mark.slow
@pytest.mark.parametrize("gradient", [PCGrad(), TorchJDAggregator(name="Random")], ids=["pcgrad", "random"])
def test_a_run_resumes_exactly_and_in_parts(gradient: Gradient, conflicting: RunConfig, run: Run, tmp_path: Path) -> None:
    """One that draws draws alike in parts, though sums are rounded otherwise there."""
    conflicting = replace(conflicting, stages=(replace(conflicting.stages[0], gradient=gradient),))
    assert run(conflicting, tmp_path / "whole")
    assert not run(conflicting, tmp_path / "broken", stop_after=2)
    assert run(conflicting, tmp_path / "broken")
    same(tmp_path / "broken", tmp_path / "whole", exact=True)
    assert run(replace(conflicting, gradient_accumulation_steps=2), tmp_path / "parts")
    same(tmp_path / "parts", tmp_path / "whole", exact=False)
    plain = replace(conflicting, stages=(replace(conflicting.stages[0], gradient=Sum()),))
    assert run(plain, tmp_path / "plain")
    assert any(not torch.allclose(w, final(tmp_path / "plain")[n]) for n, w in final(tmp_path / "whole").items()), (
        "conflict was there"
    )


@pytest.fixture
def shielded(small_run: RunConfig) -> RunConfig:
    """MAOP and a shield on the shared expert of UniDecouple, which trains by LoRA."""
    stage = replace(APART_THEN_JOINT[1], learning_rate=1e-3, lora=Lora(4, 8.0), gradient=MAOP(), shield=GradientShielding(2))
    data = replace(small_run.data, router_aux_samples=2)
    return replace(small_run, structure=TaskAwareMoE(), data=data, stages=(stage,), max_steps=4, save_total_limit=9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_maop_and_shield_on_two_processes(kind: str, shielded: RunConfig, run: Run, small_cache: Path, tmp_path: Path) -> None:
    shielded = replace(shielded, max_steps=3, parallel=kind)  # the last without the shield
    assert run(shielded, tmp_path / "one")
    train_on_ranks(2, shielded, tmp_path / "two", small_cache)
    same(tmp_path / "two", tmp_path / "one", exact=False)


@pytest.mark.slow
def test_maop_and_shield_resume_exactly(shielded: RunConfig, run: Run, tmp_path: Path) -> None:
    """The moment that anchors MAOP is the optimizer's, and the shield counts the stage's steps."""
    assert run(shielded, tmp_path / "whole")
    assert not run(shielded, tmp_path / "broken", stop_after=1)
    assert run(shielded, tmp_path / "broken")
    same(tmp_path / "broken", tmp_path / "whole", exact=True)
    for other in ({"gradient": Sum()}, {"shield": None}):
        run(replace(shielded, stages=(replace(shielded.stages[0], **other),)), tmp_path / "other" / next(iter(other)))
        found = final(tmp_path / "other" / next(iter(other)))
        changed = {n for n, w in final(tmp_path / "whole").items() if not torch.equal(w, found[n])}
        assert any("shared_expert" in n for n in changed), other


def test_nothing_to_shield_or_to_project(shielded: RunConfig, run: Run, tmp_path: Path) -> None:
    plain = replace(shielded.stages[0], gradient=Sum(), train={"generation": 1})
    with pytest.raises(ValueError, match=r"stage 'joint' shields the shared expert, of which nothing trains"):
        run(replace(shielded, structure=MoE(shared_expert=False), stages=(replace(plain, lora=None),)), tmp_path / "none")
    per_task = Lora(4, 8.0, per_task=("shared_expert",))
    with pytest.raises(ValueError, match=r"low-rank update of it that is not per_task"):
        run(replace(shielded, stages=(replace(plain, lora=per_task, train={"lora": 1}),)), tmp_path / "own")
    with pytest.raises(ValueError, match=r"gradient 'maop' works on \*\.mlp\.shared_expert\.\*, which belong to one task each"):
        run(
            replace(shielded, stages=(replace(plain, lora=per_task, gradient=MAOP(), shield=None, train={"lora": 1}),)),
            tmp_path / "maop",
        )


@pytest.mark.slow
def test_a_stage_of_one_task(small_run: RunConfig, run: Run, tmp_path: Path) -> None:
    """It logs that task's loss alone, on the samples it would have seen beside the other; the other's head stays where it is."""
    both = replace(small_run.stages[0], name="both", share=0.5)
    last = replace(both, name="drawing", tasks="t2i")
    config = replace(small_run, stages=(both, last), save_total_limit=9)
    assert run(config, tmp_path / "whole")
    assert not run(config, tmp_path / "broken", stop_after=4)
    assert run(config, tmp_path / "broken")
    same(tmp_path / "broken", tmp_path / "whole", exact=True)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [sorted(k for k in line if k.startswith("loss/") and k != "loss/group") for line in lines] == [
        *[["loss/mmu", "loss/t2i"]] * 3,
        *[["loss/t2i"]] * 3,
    ]
    before, after = (load_file(tmp_path / "whole" / f"checkpoint-{step}" / "model.safetensors") for step in (3, 6))
    assert torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    assert not torch.equal(before["model.generation_head.vision_head.weight"], after["model.generation_head.vision_head.weight"])
    with pytest.raises(ValueError, match=r"stage 'drawing' has tasks=t2i, but the run has no data of it"):
        run(replace(config, data=replace(config.data, t2i_batch_size=0)), tmp_path / "none")
