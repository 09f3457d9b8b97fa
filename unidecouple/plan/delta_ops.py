"""What weights of one task (``models/deltas.py``) add to a forward pass on paper: every batch computes them, behind a mask."""

from __future__ import annotations

from math import prod

from unidecouple.batch import TASK_KEYS
from unidecouple.models.deltas import DELTAS
from unidecouple.plan.op_trace import INDEX, OpTrace, TracedTensor

_PART = "deltas"


def with_deltas(trace: OpTrace, name: str, rows: int, x: TracedTensor, out: TracedTensor) -> TracedTensor:
    """``out`` of the linear layer ``name`` on ``x``, and what the layer's deltas add to it or put in its place."""
    for task in TASK_KEYS:
        prefix = f"{name}.{DELTAS}.{task}"
        if f"{prefix}.down" in trace.shapes:
            low = trace.product(f"{prefix}.down", rows, x)
            low = trace.times(low, trace.new(rows, False), _PART)
            change = trace.product(f"{prefix}.up", rows, low)
        elif f"{prefix}.weight" in trace.shapes:
            change = trace.product(f"{prefix}.weight", rows, x)
            trace.kept += rows * (change.grad or out.grad)  # the mask
        elif f"{prefix}.scale" in trace.shapes:
            change = _signed(trace, name, f"{prefix}.scale", rows, x)
        else:
            continue
        out = trace.pointwise(_PART, (out, change), out.elements, out.grad or change.grad)
    return out


def norm_deltas(trace: OpTrace, name: str, rows: int, x: TracedTensor) -> bool:
    """The scales of the norm ``name`` that replace its own, laid out by token; whether one of them trains."""
    there = [weight for task in TASK_KEYS if (weight := f"{name}.{DELTAS}.{task}.weight") in trace.shapes]
    if not there:
        return False
    trained = [trace.use(weight) for weight in there]
    moving = any(trained) or f"{name}.weight" in trace.trains
    trace.kept += rows * len(there) * moving  # masks
    scales = trace.pointwise(_PART, (), x.elements, moving)
    if x.grad:
        trace.keep(scales)
    return any(trained)


def embedding_deltas(trace: OpTrace, name: str, rows: int) -> bool:
    """The rows of the word embeddings ``name`` that replace its own; whether one of them trains."""
    trained = [trace.use(f"{name}.{DELTAS}.{task}.weight") for task in TASK_KEYS]
    trace.kept += sum(trained) * rows * (INDEX + 1)  # places, and the mask
    return any(trained)


def _signed(trace: OpTrace, name: str, scale: str, rows: int, x: TracedTensor) -> TracedTensor:
    """A matrix of signs, unpacked for the product, times a scale."""
    shape = trace.shapes[f"{name}.weight"]
    flops, trains = 2 * rows * prod(shape), trace.use(scale)
    mine = trace.times(x, trace.new(rows, False), _PART)
    signed = trace.new(rows * shape[0], x.grad)
    moved = prod(shape) * trace.width + mine.bytes + signed.bytes
    trace.note_product(_PART, flops, moved, (x.grad, False))
    trace.kept += prod(shape) * trace.width * x.grad
    if trains:
        trace.keep(signed)
    return trace.pointwise(_PART, (signed,), signed.elements, signed.grad or trains)
