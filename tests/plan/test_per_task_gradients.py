"""Gradients kept apart by task: floats and tensors against those that a real step keeps; what that means for the ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from measured_step import micro_batches
from unidecouple.batch import Batch, JointBatch, Task
from unidecouple.methods.gradient import MAOP, Gradient, PCGrad, Sum, TorchJDAggregator
from unidecouple.methods.objective import GroupRouterLoss, LoadBalance, Microbatch, Objective
from unidecouple.methods.stage import Stage
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.plan.stages import PlanRequest, plan, stage_load
from unidecouple.run import RunConfig
from unidecouple.train.gradients import Gradients
from unidecouple.train.parallel import Parallel
from unidecouple.train.step import count_totals
from unidecouple.train.trainable import make_param_groups

MakeModel = Callable[..., UniJanusForConditionalGeneration]
Joint = tuple[Batch, Batch]
ALL = {"*": 1.0}
LORA = {"lora_rank": 4, "lora_targets": ["attention", "experts", "shared_expert"], "lora_per_task": ["attention", "shared_expert"]}
BALANCED = Objective(auxiliary=(GroupRouterLoss(), LoadBalance(coeff=0.1)))
BOTH = tuple(Task)

CASES: dict[str, tuple[dict[str, Any], Stage, Objective]] = {
    "dense": ({}, Stage(train=ALL), Objective()),
    "attention alone": ({}, Stage(train={"attention": 1}), Objective()),
    "moe": ({"ffn": "moe"}, Stage(train=ALL), BALANCED),
    "stage 1": (
        {"ffn": "ta_moe"},
        Stage(train={"generation": 1, "experts": 1, "expert_router": 1, "task_router": 1}, routing="label"),
        Objective(),
    ),
    "stage 1, balanced": ({"ffn": "ta_moe", "context_router": True}, Stage(train=ALL, routing="label"), BALANCED),
    "routers not taught": (
        {"ffn": "ta_moe"},
        Stage(train={"attention": 1, "experts": 1, "expert_router": 1, "task_router": 1}),
        Objective(auxiliary=()),
    ),
    "LoRA": ({"ffn": "ta_moe", **LORA}, Stage(train={"lora": 1, "task_router": 1}), Objective()),
    "one task": ({}, Stage(train=ALL, tasks="t2i"), Objective()),
    "untied": ({"per_group_layers": [0, 1], "per_group_norm": True, "group_by": "task"}, Stage(train=ALL), Objective()),
}


def measured(model: UniJanusForConditionalGeneration, stage: Stage, joint: JointBatch, objective: Objective) -> tuple[int, int]:
    """Bytes and number of all gradients that the training code holds after the backward passes of a step."""
    model.train()
    make_param_groups(model, stage.train, 0.0)
    tasks, gradients = stage.of(BOTH), Gradients.of(model, stage.gradient, Parallel())
    output = model(batch=joint, routing=stage.routing)
    gradients.backward(objective.losses(Microbatch(joint, output, tasks, count_totals([joint], Parallel()))))
    held = [g for rows in gradients._found.values() for g in rows if g is not None]
    held += [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert len({g.data_ptr() for g in held}) == len(held)
    return sum(g.untyped_storage().nbytes() for g in held), len(held)


def on(stage: Stage, joint: Joint) -> JointBatch:
    return tuple(joint[task] for task in stage.of(BOTH))


@pytest.mark.parametrize("case", list(CASES))
def test_gradients_apart_are_what_training_keeps(case: str, make_model: MakeModel, joint_batch: Joint) -> None:
    text, stage, objective = CASES[case]
    stage = replace(stage, gradient=TorchJDAggregator(name="Sum", scale=1.0))
    model = make_model(experts_backend="loop", **text)
    joint = on(stage, joint_batch)
    load = stage_load(model, stage, micro_batches(joint), 4, objective=objective)
    floats, tensors = load.weights.per_task_gradients
    assert (4 * floats, tensors) == measured(model, stage, joint, objective)


@pytest.mark.parametrize("strategy", [Sum(), MAOP(parameters=("attention",))], ids=lambda one: one.kind)
def test_one_backward_pass_keeps_one_gradient(strategy: Gradient, make_model: MakeModel, joint_batch: Joint) -> None:
    stage = Stage(train=ALL, gradient=strategy)
    weights = stage_load(make_model(), stage, micro_batches(joint_batch), 4).weights
    assert weights.per_task_gradients == (0, 0)
    assert (4 * weights.trainable, weights.tensors) == measured(make_model(), stage, joint_batch, Objective())


def test_a_stage_of_one_task_has_gradients_of_what_it_meets(make_model: MakeModel, joint_batch: Joint) -> None:
    """Nor has it the other's head; with both tasks' losses that had zeros."""
    stage = Stage(train=ALL, tasks="t2i")
    joint = on(stage, joint_batch)
    weights = stage_load(make_model(), stage, micro_batches(joint), 4).weights
    assert (4 * weights.trainable, weights.tensors) == measured(make_model(), stage, joint, Objective())
    assert weights.parts["text_head"][1] == weights.parts["vision"][1] == 0


def planned(stages: tuple[Stage, ...], **question: Any) -> Any:
    run = RunConfig("understanding", stages=stages, objective=Objective(), max_steps=100)
    return plan(
        replace(run, data=replace(run.data, mmu_batch_size=8, t2i_batch_size=24, router_aux_samples=8)), PlanRequest(**question)
    )


def test_surgery_takes_a_copy_more_and_keeps_to_ddp() -> None:
    usual, surgery = (planned((Stage(train={"attention": 1}, gradient=g),), gpus=(1, 4))[0] for g in (Sum(), PCGrad()))
    attention = usual.load.weights.trainable
    assert surgery.load.weights.per_task_gradients == (2 * attention, 2 * usual.load.weights.tensors)
    assert [(one.way, one.gpus) for one in surgery.estimates] == [("ddp", 1), ("ddp", 4)]
    for before, after in zip([one for one in usual.estimates if one.way == "ddp"], surgery.estimates, strict=True):
        assert after.memory.gradients == 2 * before.memory.gradients == 2 * 4 * attention
        assert after.memory.total - before.memory.total == 4 * attention
    (sent,) = surgery.estimates[1].collectives
    assert (sent.calls, sent.sent) == (2 * usual.load.weights.tensors, 2 * 3 / 4 * 4 * 2 * attention)
    assert surgery.estimates[1].exposed == pytest.approx(sent.seconds)
    assert surgery.smallest["fsdp2"] is None
    assert surgery.breaks["fsdp2"] == surgery.breaks["tasks"] == "impossible: the stage does not allow this strategy"


def test_stages_of_one_task_plan_its_samples_alone() -> None:
    stages = tuple(Stage(tasks, train={"attention": 1}, tasks=tasks) for tasks in ("both", "mmu", "t2i"))  # type: ignore[arg-type]
    both, mmu, t2i = planned(stages)
    assert mmu.load.step == tuple(part for part in both.load.step if part.task is Task.MMU)  # router pairs are understanding's
    assert t2i.load.step == tuple(part for part in both.load.step if part.task is Task.T2I)
    assert (both.samples, mmu.samples, t2i.samples) == (1067, 267, 800)  # a third of 100 steps of 32, 8 and 24
    for stage in (both, mmu, t2i):
        assert stage.days(stage.estimates[0]) == pytest.approx(34 * stage.estimates[0].seconds / 86400)
    parts = (both.load.step, mmu.load.step, t2i.load.step)
    assert [[part.samples for part in step] for step in parts] == [[8, 24, 8], [8, 8], [24]]
    asked = planned(stages, samples=3000)
    assert [stage.samples for stage in asked] == [1000, 250, 750]


def test_a_task_that_the_recipe_has_no_samples_of() -> None:
    run = RunConfig("understanding", stages=(Stage("late", train={"attention": 1}, tasks="mmu"),))
    with pytest.raises(ValueError, match="stage 'late' has tasks=mmu, but the run has no data of it"):
        plan(replace(run, data=replace(run.data, mmu_batch_size=0)), PlanRequest(gpus=(1,)))
