"""What a variant costs, computed from its shapes by ``plan``: parameters, those active for a token, FLOPs per token."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

import torch

from unidecouple.batch import Task
from unidecouple.compare.budget import VariantPlan
from unidecouple.compare.decoupled_config import FLOAT_BYTES, matrices_of
from unidecouple.compare.merge import Decoupling
from unidecouple.delta.forms import choose_forms
from unidecouple.models.deltas import DELTAS, FullDelta, SignDelta, SparseSignDelta, make_delta
from unidecouple.plan.batch_shapes import BatchShape
from unidecouple.plan.op_trace import OpTrace, Shape
from unidecouple.plan.stages import StagePlan
from unidecouple.plan.weights import count

_DECODER = re.compile(r"model\.language_model\.(layers|norm)\.")
_HEADS = {Task.MMU: "model.generation_head.", Task.T2I: "lm_head."}
"""Weights that a task's tokens have no use for, though the step's trace passes them with no rows."""


@dataclass(frozen=True)
class VariantCost:
    """Costs of one variant.

    Attributes:
        parameters: of the model at the end, image tokenizer included.
        active: of each task, those that a token of it meets: all that take part in a pass over its samples, of the experts the
            share that a token is sent to. Absent for a task without samples.
        trainable: (stage, parameters that get gradients).
        train_flops: forward and backward of the whole step a token of training samples, padding included, mean over the run; what
            router pairs cost is in it, their tokens are not.
        generated_flops: forward alone of a generation sample an image token drawn: its prompt is in it, guidance (twice as
            much) is not; None without generation samples.
    """

    parameters: int
    active: dict[str, int]
    trainable: list[tuple[str, int]]
    train_flops: float
    generated_flops: float | None

    def to_json(self) -> dict[str, Any]:
        """As JSON's own types."""
        return asdict(self)


def cost(stages: Sequence[StagePlan]) -> VariantCost:
    """Of a variant whose run is planned as ``stages``."""
    last, whole = stages[-1], sum(stage.stage.share for stage in stages)
    steps = [(stage.stage.share / whole, stage.load.step, stage.load.trace_ops(stage.load.step)) for stage in stages]
    flops = sum(share * (trace.flops(backward=False) + trace.flops(backward=True)) for share, _, trace in steps)
    tokens = sum(share * sum(part.tokens for part in parts if part.counted) for share, parts, _ in steps)
    passes = {}
    for task, stage in itertools.product(Task, stages):  # the last stage that trains on the task says
        if parts := tuple(part for part in stage.load.step if part.task is task):
            passes[task] = (stage, parts, stage.load.trace_ops(parts))
    return VariantCost(
        parameters=last.load.weights.total,
        active={task.key: _active(stage, task, trace) for task, (stage, _, trace) in passes.items()},
        trainable=[(stage.stage.name, stage.load.weights.trainable) for stage in stages],
        train_flops=flops / tokens,
        generated_flops=_drawn(*passes[Task.T2I][1:]) if Task.T2I in passes else None,
    )


def cost_of(cell: VariantPlan) -> VariantCost:
    """Of a variant; a merged one costs what its parents do, which train one after the other. What the merge takes is left out.

    A decoupled model has the deltas of all its decoder's matrices and norms besides (of the word embeddings a few rows, left out).
    A variant that starts from another one's model costs what both do.
    """
    if not cell.of:
        return cost(cell.stages)
    parents = [cost_of(parent) for parent in cell.of]
    tokens = [sum(parent.budget.tokens.values()) for parent in cell.of]
    if cell.stages:
        return _continued(cost(cell.stages), parents[0], (sum(cell.budget.tokens.values()) - tokens[0], tokens[0]))
    found = VariantCost(
        parameters=parents[0].parameters,
        active={task: count for parent in parents for task, count in parent.active.items()},
        trainable=[
            (f"{c.job.name}: {stage}", count) for c, p in zip(cell.of, parents, strict=True) for stage, count in p.trainable
        ],
        train_flops=sum(p.train_flops * count for p, count in zip(parents, tokens, strict=True)) / sum(tokens),
        generated_flops=next((p.generated_flops for p in parents if p.generated_flops is not None), None),
    )
    merge = cell.job.merge
    if merge is None or not isinstance(merge.method, Decoupling):
        return found
    return _with_deltas(found, cell.of[0].stages[-1], merge.method, len(merge.of))


def _continued(own: VariantCost, before: VariantCost, tokens: tuple[int, int]) -> VariantCost:
    """Of a run from the model of another; ``tokens`` are those of this run and of the other."""
    return replace(
        own,
        active=before.active | own.active,
        trainable=before.trainable + own.trainable,
        train_flops=(own.train_flops * tokens[0] + before.train_flops * tokens[1]) / max(1, sum(tokens)),
        generated_flops=before.generated_flops if own.generated_flops is None else own.generated_flops,
    )


def _with_deltas(found: VariantCost, stage: StagePlan, method: Decoupling, models: int) -> VariantCost:
    parts = tuple(part for part in stage.load.step if part.task is Task.T2I)
    layers = {name: shape for name, shape in stage.load.trace_ops(parts).shapes.items() if _DECODER.match(name)}
    stored, computed = _deltas(layers, method)
    flops = 2 * computed * sum(part.tokens for part in parts) / sum(part.drawn for part in parts)
    tuned = (Task.T2I, Task.MMU)[:models]
    return replace(
        found,
        parameters=found.parameters + stored * len(tuned),
        active={task: count + computed * (Task[task.upper()] in tuned) for task, count in found.active.items()},
        generated_flops=None if found.generated_flops is None else found.generated_flops + flops,
    )


def _deltas(layers: Mapping[str, Shape], method: Decoupling) -> tuple[int, int]:
    """Numbers stored for a task beside the decoder's own, and those of them that a token meets besides the layers' own.

    Where ranks depend on the weights, they are at most those of a budget, or both sets.
    """
    matrices = matrices_of(layers)
    norms = sum(prod(shape) for shape in layers.values() if len(shape) == 1)
    if method.needs_spectra:
        whole = sum(matrix.whole for matrix in matrices.values())
        numbers = min(whole, method.budget or whole) // FLOAT_BYTES
        return numbers + norms, numbers
    stored, computed = norms, 0
    for name, form in choose_forms(matrices, method).items():
        with torch.device("meta"):
            delta = make_delta(form, layers[name])
        numbers = sum(tensor.numel() for tensor in delta.state_dict().values())
        stored += numbers
        if isinstance(delta, SignDelta | SparseSignDelta):  # a sign per weight, eight to a number
            numbers = prod(layers[name]) + 1
        computed += 0 if isinstance(delta, FullDelta) else numbers  # a full weight stands in the layer's own place
    return stored, computed


def _active(stage: StagePlan, task: Task, trace: OpTrace) -> int:
    apart = any(name.startswith(_HEADS[Task.MMU]) for name in trace.shapes)  # Emu3 has one head for both
    met = {name: trace.shapes[name] for name in trace.used if not (apart and name.startswith(_HEADS[task]))}
    others = tuple(f".{DELTAS}.{other.key}." for other in Task if other is not task)
    met = {name: shape for name, shape in met.items() if not any(prefix in name for prefix in others)}
    return count(stage.config.text_config, met, (), ()).active


def _drawn(parts: Sequence[BatchShape], trace: OpTrace) -> float:
    return (trace.flops(backward=False) - trace.reference) / sum(part.drawn for part in parts)
