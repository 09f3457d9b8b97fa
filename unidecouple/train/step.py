"""One training step, as the paper writes it: forward, losses by task, sum, backward, step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unidecouple.batch import JointBatch, Task
from unidecouple.methods.objective.balance import balance_loss
from unidecouple.methods.objective.group_router import group_router_loss, router_accuracy
from unidecouple.methods.stage import Objective
from unidecouple.models.janus import JointOutput, UniJanusForConditionalGeneration
from unidecouple.train.trainable import hold_absent_tasks


class TrainingDivergedError(ArithmeticError):
    """A loss is not a number; the last checkpoint is intact."""


@dataclass(frozen=True)
class StepResult:
    """Losses and measurements of one step, plain floats; router accuracy by task where there is a task router."""

    losses: dict[str, float]
    router_accuracy: dict[str, float]
    grad_norm: float
    tokens: int


def total_loss(
    output: JointOutput, batch: JointBatch, objective: Objective, tasks: Sequence[Task]
) -> tuple[Tensor, dict[str, Tensor]]:
    """``L = sum_t lambda_t L_t + gamma L_group`` (eq. 2), plus load balance where asked; and its terms by name."""
    coefficients = {Task.MMU: objective.mmu_coeff, Task.T2I: objective.t2i_coeff}
    terms = {task.key: output.loss(task) for task in tasks}
    loss = torch.stack([coefficients[task] * terms[task.key] for task in tasks]).sum()
    if objective.group_coeff:
        terms["group"] = group_router_loss(batch, output.routing, objective.group_mmu_weight)
        loss = loss + objective.group_coeff * terms["group"]
    if objective.balance_coeff:
        terms["balance"] = balance_loss(batch, output.routing)
        loss = loss + objective.balance_coeff * terms["balance"]
    return loss, terms


def train_step(
    model: UniJanusForConditionalGeneration,
    optimizer: torch.optim.Optimizer,
    batch: JointBatch,
    objective: Objective,
    tasks: Sequence[Task],
    routing: str | None,
    max_grad_norm: float,
) -> StepResult:
    """Run one optimizer step on ``batch``.

    Args:
        model: in training mode.
        optimizer: over the weights that train.
        batch: the joint batch.
        objective: weights of the losses.
        tasks: tasks the run has data of; weights private to others are held.
        routing: "label", "learned", or None for the model's own.
        max_grad_norm: clipping.

    Raises:
        TrainingDivergedError: a loss is NaN or infinite; nothing was updated.
    """
    output = model(batch=batch, routing=routing)
    loss, terms = total_loss(output, batch, objective, tasks)
    values = {name: term.item() for name, term in terms.items()}
    if not math.isfinite(loss.item()):
        raise TrainingDivergedError(
            f"the loss is {loss.item()} ({values}): lower learning_rate or max_grad_norm, or raise warmup_steps"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    hold_absent_tasks(model, [task for task in Task if task not in tasks])
    weights: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(weights, max_grad_norm)
    optimizer.step()
    accuracy = {Task(task).key: share for task, share in router_accuracy(batch, output.routing).items()}
    return StepResult(values, accuracy, float(norm), sum(part.num_tokens for part in batch))
