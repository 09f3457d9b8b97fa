"""What a real step of a tiny model costs, measured, beside what the plan says of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from unidecouple.batch import IGNORE, NO_IMAGE_TOKEN, JointBatch, Task
from unidecouple.methods.objective import Microbatch, Objective
from unidecouple.methods.selection import select
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.plan.batch_shapes import BatchShape
from unidecouple.plan.forward import TracedModel, trace_ops
from unidecouple.plan.op_trace import OpTrace
from unidecouple.train.parallel import Parallel
from unidecouple.train.step import count_totals


@dataclass(frozen=True)
class Step:
    """A model after one real forward and backward, and the plan's trace of the same step."""

    model: UniJanusForConditionalGeneration
    forward: int
    backward: int
    kept: int
    moving: set[str]
    trace: OpTrace


def micro_batches(joint: JointBatch) -> tuple[BatchShape, ...]:
    """What the plan is given about real batches."""
    return tuple(
        BatchShape(
            Task.T2I if bool((batch.image_tokens != NO_IMAGE_TOKEN).any()) else Task.MMU,
            *batch.input_ids.shape,
            answers=int((batch.labels[:, 1:] != IGNORE).sum()),
            drawn=int((batch.image_tokens[:, 1:] != NO_IMAGE_TOKEN).sum()),
            pictures=0 if batch.pixel_values is None else len(batch.pixel_values),
        )
        for batch in joint
    )


def shapes_of(model: UniJanusForConditionalGeneration) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def measured_step(
    model: UniJanusForConditionalGeneration,
    joint: JointBatch,
    train: dict[str, float],
    routing: str,
    attention: str,
    again: bool = False,
    objective: Objective | None = None,
) -> Step:
    """Run one step of ``model``, its experts in a loop, since torch's counter knows no grouped_mm.

    Nor does it know the CPU's fused attention: it counts with attention="eager"; kept tensors are measured with "sdpa".
    ``again`` checkpoints every layer.
    """
    model.set_attn_implementation(attention)
    chosen = select(shapes_of(model), train)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    model.train()
    if again:
        model.activation_checkpointing_enable()
        model.disable_input_require_grads()  # the library lets gradients into frozen towers, which would then have a backward
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    objective = objective or Objective()
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **rest: 2 * a[0] * a[1] * b[1]}  # the library counts addmm alone
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(batch=joint, routing=routing, **objective.forward_options)
            loss = objective.losses(Microbatch(joint, output, tuple(Task), count_totals([joint], Parallel()))).total
        forward = counter.get_total_flops()
        loss.backward()
    return Step(
        model,
        forward,
        counter.get_total_flops() - forward,
        sum(tensor.untyped_storage().nbytes() for tensor in kept.values()),
        {name for name, parameter in model.named_parameters() if parameter.grad is not None},
        trace_ops(TracedModel.of(model, chosen, routing, 4), micro_batches(joint), distilled=objective.distilled),
    )
