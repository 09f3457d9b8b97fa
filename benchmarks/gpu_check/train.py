"""G7: tokens per second and MFU of both training stages at 1B, beside dense training and the library's eager experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.gpu_check.check import Check
from benchmarks.gpu_check.findings import Goal
from benchmarks.gpu_check.sizes import LORA, SIZES, TINY, UNIDECOUPLE, packed, training_batch
from benchmarks.layers import with_their_experts
from benchmarks.tiny import processor_of
from unidecouple.batch import JointBatch, Task
from unidecouple.generate.layout import layers_of
from unidecouple.methods.objective import Objective
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.moe import MixtureOfExperts
from unidecouple.models.tiny import tiny_config, tiny_model
from unidecouple.plan.batch_shapes import BatchShape
from unidecouple.plan.devices import DEVICES
from unidecouple.plan.forward import TracedModel, trace_ops
from unidecouple.train.parallel import Parallel
from unidecouple.train.step import StepSettings, train_step
from unidecouple.train.trainable import make_param_groups


@dataclass(frozen=True)
class Stage:
    """A stage of training.

    Attributes:
        text: fields of the decoder.
        train: what trains, with factors on the learning rate, as in recipes.
        routing: "label" or "learned".
        rate: tokens per second to reach.
    """

    text: dict[str, Any]
    train: dict[str, float]
    routing: str = "learned"
    rate: float | None = None


STAGES = {
    "stage 1": Stage(UNIDECOUPLE, {"generation": 1, "experts": 1, "expert_router": 1, "task_router": 5}, "label", 40_000),
    "stage 2": Stage(UNIDECOUPLE | LORA, {"generation": 0.25, "lora": 1, "task_router": 2.5, "expert_router": 0.3}, rate=48_000),
    "dense": Stage({}, {"generation": 1, "attention": 1, "ffn": 1, "norms": 1, "embeddings": 1, "text_head": 1}),
}
VISION = {"vision_hidden_size": 1024, "vision_layers": 24}
"""About the size of SigLIP-L, whose forward pass is part of each step."""

PEER = 2.5
"""Times as fast as the library's eager experts in the same step."""


def run(check: Check) -> None:
    """All stages."""
    for name, stage in list(STAGES.items())[: 1 if check.tiny else None]:
        with check.attempt(name):
            _stage(check, name, stage)


def _stage(check: Check, name: str, stage: Stage) -> None:
    model, start = _model(check, stage), check.now()
    check.add(f"{name}: parameters", float(sum(p.numel() for p in model.parameters())), "")
    rows = (1, 2, 2) if check.tiny else (4, 8, 16)
    ours: float | None = None
    for count in rows[:2]:
        with check.attempt(f"{name}, {count} rows"):
            step, tokens = _step(check, model, stage, training_batch(model.config, count, check.device))
            first = check.now() - start
            seconds = check.timed(step, 3, 1)
            _rate(
                check,
                f"{name}, {count} rows per task",
                tokens,
                seconds,
                stage.rate,
                first=first,
                **_mfu(model, stage, count, seconds),
            )
            ours = tokens / seconds
            if count == rows[1]:
                check.add(f"{name}: a step", **check.waits(step), **check.kernels(step, 24))
    with check.attempt(f"{name}, packed"):
        joint = training_batch(model.config, rows[0], check.device)
        step, tokens = _step(check, model, stage, tuple(packed(batch) for batch in joint))
        _rate(check, f"{name}, {rows[0]} rows per task in one packed row", tokens, check.timed(step, 2, 1))
    with check.attempt(f"{name}, checkpointing"):
        model.activation_checkpointing_enable()
        model.disable_input_require_grads()
        step, tokens = _step(check, model, stage, training_batch(model.config, rows[2], check.device))
        _rate(check, f"{name}, {rows[2]} rows per task, checkpointing", tokens, check.timed(step, 2, 1))
    model.activation_checkpointing_disable()
    if name == "stage 1" and ours is not None:
        with check.attempt(f"{name}, eager experts"):
            _eager(check, model, stage, rows[1], ours)


def _model(check: Check, stage: Stage) -> UniJanusForConditionalGeneration:
    """Random weights, made on the device in float32, as training keeps them."""
    size = TINY if check.tiny else replace(SIZES["1B"], **VISION)  # type: ignore[arg-type]
    processor = processor_of(size)
    large = {} if check.tiny else {"vocab_size": 102400, "max_position_embeddings": 16384}
    with check.device:
        model = tiny_model(tiny_config(processor.tokenizer, size, **large, **stage.text), seed=0).train()
    model.model.vqmodel.eval()
    return model


def _step(
    check: Check, model: UniJanusForConditionalGeneration, stage: Stage, joint: JointBatch
) -> tuple[Callable[[], object], int]:
    """A training step of ``joint`` as ``unidecouple train`` makes it in bf16, and its tokens."""
    optimizer = torch.optim.AdamW(make_param_groups(model, stage.train, 1e-4), betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    options = {"routing": stage.routing} if stage.text else {}
    parallel = Parallel(device=check.device, bf16=True)
    settings = StepSettings(Objective(), tuple(Task), parallel=parallel, forward_options=lambda batch, step: options)
    return lambda: train_step(model, optimizer, [joint], settings), sum(batch.num_tokens for batch in joint)


def _rate(check: Check, name: str, tokens: int, seconds: float, rate: float | None = None, **details: Any) -> None:
    goal = None if rate is None else Goal(rate)
    check.add(
        f"G7 {name}", tokens / seconds, "tokens/s", goal, seconds=seconds, tokens=tokens, memory_gb=check.peak_gb(), **details
    )


def _mfu(model: UniJanusForConditionalGeneration, stage: Stage, rows: int, seconds: float) -> dict[str, float]:
    """Model FLOPs by the plan's count, and their share of the H100's peak."""
    images = model.config.vision_config.num_image_tokens
    parts = (
        BatchShape(Task.MMU, rows, 130 + images, 64 * rows, 0, rows),
        BatchShape(Task.T2I, rows, 64 + images, 0, rows * images, 0),
    )
    trains = [name for name, weight in model.named_parameters() if weight.requires_grad]
    trace = trace_ops(TracedModel.of(model, trains, stage.routing, 2), parts)
    flops = trace.flops(backward=False) + trace.flops(backward=True)
    return {"tflops": flops / seconds / 1e12, "mfu": flops / seconds / DEVICES["h100"].bf16}


def _eager(check: Check, model: UniJanusForConditionalGeneration, stage: Stage, rows: int, ours: float) -> None:
    """The same step with the library's eager experts in place of ours (tokens per second: ``ours``)."""
    for layer in layers_of(model.decoder):
        assert isinstance(layer.mlp, MixtureOfExperts)
        with check.device:
            layer.mlp = with_their_experts(layer.mlp, "eager")
    step, tokens = _step(check, model, stage, training_batch(model.config, rows, check.device))
    seconds = check.timed(step, 2, 1)
    check.add("G7 stage 1: ours / the library's eager experts", ours * seconds / tokens, "x", Goal(PEER), seconds=seconds)
