"""The plan's FLOPs, gradients and kept bytes against torch's own counts on a real step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from measured_step import Step, shapes_of
from unidecouple.batch import Batch, Task
from unidecouple.methods.objective import Objective, SelfDistillation
from unidecouple.plan.batch_shapes import BatchShape
from unidecouple.plan.estimate import by_part, executed
from unidecouple.plan.forward import TracedModel, trace_ops
from unidecouple.plan.op_trace import Op

TakeStep = Callable[..., Step]

ALL = {"*": 1.0}
STAGE_1 = {"generation": 1, "experts": 1, "expert_router": 1, "task_router": 1}
STAGE_2 = {"generation": 1, "lora": 1, "expert_router": 1, "task_router": 1}
LORA = {"lora_rank": 4, "lora_targets": ["attention", "experts", "shared_expert"], "lora_per_task": ["attention", "shared_expert"]}
MIXED = {"lora_rank": 4, "lora_targets": ["attention", "mlp"], "lora_experts": 3}
DENSE_LORA = {"lora_rank": 4, "lora_targets": ["attention", "mlp"]}
_MATRICES = [f"layers.{n}.{m}_proj" for n in (0, 1) for m in ("self_attn.q", "self_attn.o", "mlp.gate", "mlp.down")]
_NORMS = {"layers.0.input_layernorm": "full", "norm": "full"}


def deltas(form: str, *tasks: str) -> dict[str, Any]:
    return {"task_deltas": {task: dict.fromkeys(_MATRICES, form) | _NORMS | {"embed_tokens": "rows:3"} for task in tasks}}


CASES: dict[str, tuple[dict[str, Any], dict[str, float], str]] = {
    "residuals of generation": (deltas("rank:2", "t2i"), {"deltas": 1}, "learned"),
    "residuals of both tasks, everything trains": (deltas("rank:2", "mmu", "t2i"), ALL, "learned"),
    "whole weights of generation": (deltas("full", "t2i"), ALL, "learned"),
    "signs of generation": (deltas("bits", "t2i"), {"deltas": 1}, "learned"),
    "signs of some entries": (deltas("sparse:9", "t2i"), {"deltas": 1}, "learned"),
    "dense": ({}, ALL, "learned"),
    "dense, few key heads": ({"num_key_value_heads": 2, "attention_bias": True}, ALL, "learned"),
    "dense, attention trains": ({}, {"attention": 1}, "learned"),
    "dense, generation trains": ({}, {"generation": 1}, "learned"),
    "dense, vision trains": ({}, {"vision": 1}, "learned"),
    "dense, nothing below the text head trains": ({}, {"text_head": 1}, "learned"),
    "dense, LoRA": (DENSE_LORA, {"lora": 1}, "learned"),
    "dense, LoRA by task": ({**DENSE_LORA, "lora_per_task": ["attention", "mlp"]}, {"lora": 1}, "learned"),
    "moe": ({"ffn": "moe"}, ALL, "learned"),
    "stage 1": ({"ffn": "ta_moe"}, STAGE_1, "label"),
    "experts alone": ({"ffn": "ta_moe"}, {"experts": 1}, "label"),
    "two experts a token": ({"ffn": "ta_moe", "num_experts_per_tok": 2}, ALL, "learned"),
    "unequal groups": ({"ffn": "typed_moe", "group_by": "image_out", "group_sizes": [3, 1]}, ALL, "learned"),
    "three groups": (
        {"ffn": "typed_moe", "group_by": "type", "num_experts": 8, "group_sizes": [2, 2, 4], "num_experts_per_tok": 2},
        {"generation": 1, "experts": 1, "expert_router": 1, "shared_expert": 1},
        "label",
    ),
    "no shared expert": ({"ffn": "ta_moe", "shared_expert": False}, ALL, "learned"),
    "stage 2": ({"ffn": "ta_moe", **LORA}, STAGE_2, "learned"),
    "a shared expert per task": ({"ffn": "ta_moe", "shared_expert_per_task": True}, ALL, "learned"),
    "a shared expert per task, frozen": ({"ffn": "ta_moe", "shared_expert_per_task": True}, STAGE_1, "label"),
    "a shared expert per task, LoRA": ({"ffn": "ta_moe", "shared_expert_per_task": True, **LORA}, STAGE_2, "learned"),
    "I-LoRA": (MIXED | {"lora_kind": "interaction"}, {"lora": 1}, "learned"),
    "MoDE": (MIXED | {"lora_kind": "modality", "group_by": "modality"}, {"lora": 1}, "learned"),
    "MoDE, everything trains": (MIXED | {"lora_kind": "modality", "group_by": "modality"}, ALL, "learned"),
    "FFN untied": ({"per_group_layers": [0, 1], "per_group_parts": ["ffn"]}, ALL, "learned"),
    "attention and norms untied": ({"per_group_layers": [1], "per_group_parts": ["attention", "norms"]}, ALL, "learned"),
    "LoRA alone": ({"ffn": "ta_moe", **LORA}, {"lora": 1}, "learned"),
    "untied by modality": ({"per_group_layers": [0, 1], "per_group_norm": True, "group_by": "modality"}, ALL, "learned"),
    "untied last layer": ({"per_group_layers": [1], "attention_bias": True}, ALL, "learned"),
    "untied, within a group": ({"per_group_layers": [0], "per_group_attention": "group"}, ALL, "learned"),
    "untied, attention trains": ({"per_group_layers": [0, 1], "group_by": "image_out"}, {"attention": 1}, "learned"),
    "LoRA on routers": (
        {"ffn": "ta_moe", **LORA, "lora_targets": ["router", "experts"], "lora_per_task": []},
        {"lora": 1},
        "learned",
    ),
    "context router": ({"ffn": "ta_moe", "context_router": True, **LORA}, ALL, "learned"),
}
every_case = pytest.mark.parametrize("case", list(CASES))


@pytest.mark.slow
@every_case
def test_flops_are_the_counters(step: TakeStep, case: str) -> None:
    text, train, routing = CASES[case]
    done = step(train, routing, **text)
    assert done.trace.flops(backward=False) == done.forward
    assert done.trace.flops(backward=True) == done.backward


@pytest.mark.slow
@every_case
def test_weights_with_gradients_are_autograds(step: TakeStep, case: str) -> None:
    text, train, routing = CASES[case]
    done = step(train, routing, **text)
    assert set(done.trace.trains) & done.trace.used == done.moving


@pytest.mark.slow
@every_case
def test_kept_bytes_are_autograds(step: TakeStep, case: str) -> None:
    """Within 2%: masks, indices and the routers' own losses are not followed to the byte."""
    text, train, routing = CASES[case]
    done = step(train, routing, "sdpa", **text)
    assert done.trace.kept + done.trace.logits == pytest.approx(done.kept, rel=0.02)


@pytest.mark.parametrize("task", ["mmu", "t2i"])
def test_self_distillation_passes_twice(step: TakeStep, task: Literal["mmu", "t2i"]) -> None:
    """Its second pass and heads are counted by torch, and what they keep; no generated token costs them."""
    text, train, _ = CASES["MoDE, everything trains"]
    objective = Objective(auxiliary=(SelfDistillation(task=task),))
    plain, done = step(train, **text), step(train, objective=objective, **text)
    assert done.trace.flops(backward=False) == done.forward
    assert done.trace.flops(backward=True) == done.backward
    assert done.trace.reference == done.forward - plain.forward > 0.3 * plain.forward * (task == "mmu")
    kept = step(train, "learned", "sdpa", objective=objective, **text)
    assert kept.trace.kept + kept.trace.logits == pytest.approx(kept.kept, rel=0.02)


@pytest.mark.parametrize("case", ["stage 1", "stage 2", "LoRA alone", "dense", "experts alone"])
def test_checkpointing_computes_layers_again(step: TakeStep, case: str) -> None:
    """Exactly where every weight's layer ends in what is needed again; else torch stops before the last products."""
    text, train, routing = CASES[case]
    done = step(train, routing, again=True, **text)
    planned = sum(op.flops for op in executed(done.trace, again=True) if op.backward)
    if case in ("dense", "experts alone"):
        assert done.backward < planned < 1.1 * done.backward
    else:
        assert planned == done.backward
    assert set(done.trace.trains) & done.trace.used == done.moving


@pytest.mark.parametrize("case", ["stage 1", "stage 2", "dense"])
def test_checkpointing_keeps_inputs_of_layers(step: TakeStep, case: str) -> None:
    """Within 8%: what a checkpoint of a tiny layer keeps besides (task ids, positions, the routers' losses) weighs more."""
    text, train, routing = CASES[case]
    done = step(train, routing, "sdpa", again=True, **text)
    inputs = done.trace.kept - sum(block.kept - block.entry for block in done.trace.blocks if block.kept)
    assert inputs + done.trace.logits == pytest.approx(done.kept, rel=0.08)
    assert inputs < 0.2 * done.trace.kept


def test_generation_data_alone_leaves_vision_out(step: TakeStep, joint_batch: tuple[Batch, Batch]) -> None:
    done = step(ALL, batch=(joint_batch[Task.T2I],))
    assert done.trace.flops(backward=True) == done.backward
    assert set(done.trace.trains) & done.trace.used == done.moving
    assert not [name for name in done.moving if name.startswith(("model.vision_model.", "model.aligner."))]


def test_every_weight_is_met(step: TakeStep) -> None:
    """A weight that the plan forgets, or a new one of the model, shows here; only the frozen tokenizer takes no part."""
    trace = step(ALL, ffn="ta_moe", context_router=True, **LORA).trace
    assert {name for name in trace.shapes if name not in trace.used} == {name for name in trace.shapes if "vqmodel" in name}


def test_first_layers_updates_by_task_rest_without_a_group(step: TakeStep) -> None:
    trace = step({"lora": 1}, ffn="ta_moe", **LORA).trace
    resting = {name for name in trace.trains if name not in trace.used}
    assert resting
    assert all(".layers.0.self_attn." in name for name in resting)


def test_frozen_weights_cost_no_gradient_of_their_own(step: TakeStep) -> None:
    frozen, full = (by_part(step(train, "label", ffn="ta_moe").trace) for train in (STAGE_1, ALL))
    assert frozen["shared_expert"] == (full["shared_expert"][0], full["shared_expert"][0])  # gradients of activations only
    assert full["shared_expert"][1] == 2 * full["shared_expert"][0]
    assert frozen["experts"] == full["experts"]
    assert frozen["vision"][1] == 0


def test_no_backward_below_what_trains(step: TakeStep) -> None:
    trace = step({"*.layers.1.mlp.*": 1}).trace
    moving = {op.block for op in trace.ops if op.backward}
    names = {trace.blocks[index].name for index in moving if index >= 0}
    assert names == {"model.language_model.layers.1"}
    assert all(block.kept == 0 for block in trace.blocks if not block.name.endswith("layers.1"))


def test_half_precision_keeps_less(step: TakeStep) -> None:
    model = step(ALL).model
    parts = (BatchShape(Task.MMU, 4, 40, 8, 0, 4),)
    wide, half = (trace_ops(TracedModel.of(model, shapes_of(model), "learned", width), parts) for width in (4, 2))
    assert 0.5 * wide.kept < half.kept < wide.kept  # norms keep float32
    assert half.logits == wide.logits  # so does the loss
    assert [op.flops for op in half.ops] == [op.flops for op in wide.ops]


def test_the_counter_sees_no_grouped_mm(make_model: Callable[..., Any], joint_batch: tuple[Batch, Batch]) -> None:
    """Why the comparison runs experts in a loop. Should this fail, torch counts them now, and the loop is not needed."""
    counts = []
    for backend in ("loop", "grouped_mm"):
        model = make_model(ffn="ta_moe", experts_backend=backend)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(batch=joint_batch)
        counts.append(counter.get_total_flops())
    assert counts[1] < counts[0]


def test_operations_name_their_part(step: TakeStep) -> None:
    ops: list[Op] = step(STAGE_2, ffn="ta_moe", **LORA).trace.ops
    assert "other" not in {op.part for op in ops}
    assert {"attention", "experts", "shared_expert", "lora", "text_head", "generation", "vision", "attention scores"} <= {
        op.part for op in ops
    }
