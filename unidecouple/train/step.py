"""One training step: forward, losses per task, their gradients combined (by default summed), optimizer step.

A step may come in several micro-batches (gradient accumulation, and one share per process). Every mean is taken over the whole
step, so losses and gradients do not depend on how it was cut, except for auxiliary losses that are ``per_microbatch``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unidecouple.batch import TASK_KEYS, Batch, JointBatch, Task, count_targets, count_tokens
from unidecouple.diagnose.routing import count_routing, router_hits
from unidecouple.methods.objective import Microbatch, Objective, StepTotals
from unidecouple.models.interaction import CrossModalMask
from unidecouple.train.gradients import Gradients
from unidecouple.train.parallel import Parallel
from unidecouple.train.trainable import hold_absent_tasks

_REMEDY = "lower learning_rate or max_grad_norm, or raise warmup_steps"


class TrainingDivergedError(ArithmeticError):
    """A loss or a gradient is not finite; the weights are those of the step before, and the last checkpoint is intact."""


@dataclass(frozen=True)
class StepResult:
    """Losses and measurements of one step.

    Attributes:
        losses: unweighted, by name, in nats.
        router_accuracy: share of tokens in the right group, per task; empty without a task router.
        grad_norm: before clipping.
        tokens: per task, without padding.
        routing: the step's ``count_routing``, if requested and the model is a mixture.
    """

    losses: dict[str, float]
    router_accuracy: dict[str, float]
    grad_norm: float
    tokens: dict[str, int]
    routing: Tensor | None = None


def _no_options(part: JointBatch, step: int) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class StepSettings:
    """What stays the same over the steps of a stage.

    Attributes:
        objective: losses and their coefficients.
        tasks: tasks the run has data of; weights private to others are frozen.
        max_grad_norm: clipping.
        parallel: the processes that share the step; by default this one alone.
        gradients: how gradients are made; by default of the sum of all losses.
        forward_options: keyword arguments of the model's forward, given a micro-batch and the number of the run's step: the stage's
            routing and other scheduled options (see ``Stage.forward_options``).
        seed: of gradient methods that are random.
    """

    objective: Objective
    tasks: Sequence[Task]
    max_grad_norm: float = 1.0
    parallel: Parallel = field(default_factory=Parallel)
    gradients: Gradients = field(default_factory=Gradients)
    forward_options: Callable[[JointBatch, int], Mapping[str, Any]] = _no_options
    seed: int = 0


def count_totals(
    parts: Sequence[JointBatch], parallel: Parallel, spans: Callable[[Batch], CrossModalMask] | None = None
) -> StepTotals:
    """Denominators of the step, counted in this process's ``parts`` and summed over processes; ``spans`` finds ``samples``."""
    batches: list[Batch] = [batch for part in parts for batch in part]
    targets, tokens = count_targets(batches), count_tokens(batches)
    samples = torch.stack([spans(batch).samples for batch in batches]).sum(0) if spans else torch.zeros_like(tokens)
    return StepTotals(*parallel.sum(torch.stack([targets, tokens, samples])).unbind())


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[JointBatch],
    settings: StepSettings,
    step: int = 1,
    expert_groups: Sequence[int] = (),
) -> StepResult:
    """Run one optimizer step.

    Args:
        model: in training mode, as ``settings.parallel`` wrapped it.
        optimizer: over the weights that train.
        parts: this process's micro-batches of the step; each has samples of every task.
        settings: see ``StepSettings``.
        step: its number in the run, from 1.
        expert_groups: experts in each group of the mixtures, to count routing; by default nothing is counted.

    Raises:
        TrainingDivergedError: a loss or a gradient is NaN or infinite in any process; nothing was updated.
    """
    parallel, gradients, objective = settings.parallel, settings.gradients, settings.objective
    looked_at = objective.needs_attention_stats
    totals = count_totals(parts, parallel, parallel.trained(model).spans if looked_at else None)
    measured: dict[str, Tensor] = {}
    hits: list[Tensor] = []
    counted: list[Tensor | None] = []
    optimizer.zero_grad(set_to_none=True)
    for place, batch in enumerate(parts):
        with parallel.gradients(model, last=place == len(parts) - 1 and not gradients.strategy.by_task), parallel.precision():
            options = {**objective.forward_options, **settings.forward_options(batch, step)}
            output = model(batch=batch, **options)
            losses = objective.losses(Microbatch(batch, output, settings.tasks, totals, parallel.sum))
            gradients.backward(losses)
        for name, term in losses.terms.items():
            measured[name] = measured.get(name, torch.zeros_like(term)) + term.detach()
        right = router_hits(batch, output.routing)
        hits += [] if right is None else [right]
        counted += [count_routing(batch, output.routing, expert_groups)] if expert_groups else []
    means = dict(zip(measured, parallel.sum(torch.stack([*measured.values()])).tolist(), strict=True))
    if not all(math.isfinite(value) for value in means.values()):
        raise TrainingDivergedError(f"the loss is not finite ({means}): {_REMEDY}")
    norm = _update(model, optimizer, settings, step, means)
    tables = [table for table in counted if table is not None]
    tokens: list[int] = totals.tokens.tolist()
    return StepResult(
        losses=means,
        router_accuracy=_accuracy(hits, tokens, parallel),
        grad_norm=norm,
        tokens=dict(zip(TASK_KEYS, tokens, strict=True)),
        routing=parallel.sum(torch.stack(tables).sum(0)) if tables else None,
    )


def _update(
    model: nn.Module, optimizer: torch.optim.Optimizer, settings: StepSettings, step: int, means: Mapping[str, float]
) -> float:
    """Combine the gradients, clip them and step; the norm before clipping."""
    parallel = settings.parallel
    settings.gradients.combine(optimizer, (settings.seed, step))
    hold_absent_tasks(model, [task for task in Task if task not in settings.tasks])
    weights: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
    norm = parallel.full_tensor(torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)).item()
    if not math.isfinite(norm):  # AdamW would carry it into every weight, and the next checkpoint replace the last good one
        raise TrainingDivergedError(f"the gradient is not finite (norm {norm}, losses {dict(means)}): {_REMEDY}")
    optimizer.step()
    return norm


def _accuracy(hits: Sequence[Tensor], tokens: Sequence[int], parallel: Parallel) -> dict[str, float]:
    """Share of each task's tokens in the right group; empty without a task router."""
    if not hits:
        return {}
    right = parallel.sum(torch.stack([*hits]).sum(0))
    shares = (right / right.new_tensor(tokens)).tolist()
    return {task.key: shares[task] for task in Task if tokens[task]}
