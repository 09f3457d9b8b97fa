"""One training step, as the paper writes it: forward, losses by task, their gradients combined (by default summed), step.

A step may come in parts (accumulation, and one share a process). Every mean is taken over the whole step, so its losses and
gradients do not depend on how it was cut; all but load balance, which is taken part by part (see ``losses_of_part``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unidecouple.batch import TASK_KEYS, Batch, JointBatch, Task, count_targets, count_tokens
from unidecouple.diagnose.routing import count_routing
from unidecouple.methods.objective.aia import aia_loss
from unidecouple.methods.objective.balance import Total, balance_loss
from unidecouple.methods.objective.group_router import group_router_loss, routed_right
from unidecouple.methods.stage import Objective
from unidecouple.models.base import JointOutput
from unidecouple.models.interaction import Spans
from unidecouple.models.shield import SharedShield
from unidecouple.train.gradients import Gradients, Losses
from unidecouple.train.parallel import Parallel
from unidecouple.train.trainable import hold_absent_tasks


class TrainingDivergedError(ArithmeticError):
    """A loss or a gradient is not finite; the weights are those of the step before, and the last checkpoint is intact."""


@dataclass(frozen=True)
class StepResult:
    """Losses and measurements of one step, plain floats; router accuracy by task where there is a task router; tokens by task.

    ``routing`` is the step's ``count_routing``, where it was asked for and there is a mixture.
    """

    losses: dict[str, float]
    router_accuracy: dict[str, float]
    grad_norm: float
    tokens: dict[str, int]
    routing: Tensor | None = None


@dataclass(frozen=True)
class Totals:
    """What the means of a step are over, over all parts and processes, (tasks,) each.

    Attributes:
        targets, tokens: of each task.
        samples: of each task, those whose attention between the modalities counts; zeros where it is not measured.
    """

    targets: Tensor
    tokens: Tensor
    samples: Tensor

    @classmethod
    def of(cls, parts: Sequence[JointBatch], parallel: Parallel, spans: Callable[[Batch], Spans] | None = None) -> Totals:
        """Counted in ``parts``, which are this process's, and summed over processes; ``spans`` finds what ``samples`` counts."""
        batches: list[Batch] = [batch for part in parts for batch in part]
        targets, tokens = count_targets(batches), count_tokens(batches)
        samples = torch.stack([spans(batch).samples for batch in batches]).sum(0) if spans else torch.zeros_like(tokens)
        return cls(*parallel.sum(torch.stack([targets, tokens, samples])).unbind())


def losses_of_part(
    output: JointOutput,
    batch: JointBatch,
    objective: Objective,
    tasks: Sequence[Task],
    totals: Totals,
    total: Total = lambda value: value,
) -> Losses:
    """``L = sum_t lambda_t L_t + gamma L_group`` (eq. 2), plus load balance and alignment where asked; and its terms by name.

    Over the parts of a step these sum to the step's. Load balance is no mean over tokens: processes balance a part together
    (``total`` sums over them), and parts that one process takes one after the other count by their tokens. So with accumulation
    each part is to be balanced by itself, which asks for more than a balance over the step: results are near, not the same. The
    step's own would take every part's forward pass before the first backward pass, and the memory that accumulation saves.
    """
    coefficients = {Task.MMU: objective.mmu_coeff, Task.T2I: objective.t2i_coeff}
    sums = {Task.MMU: output.mmu.total, Task.T2I: output.t2i.total}
    terms = {task.key: sums[task] / totals.targets[task].clamp_min(1) for task in tasks}
    by_task = {task.key: coefficients[task] * terms[task.key] for task in tasks}
    others = []
    if objective.group_coeff:
        terms["group"] = group_router_loss(batch, output.routing, objective.group_mmu_weight, totals.tokens)
        others.append(objective.group_coeff * terms["group"])
    if objective.balance_coeff:
        share = total(count_tokens(batch)).sum() / totals.tokens.sum()
        terms["balance"] = share * balance_loss(batch, output.routing, total)
        others.append(objective.balance_coeff * terms["balance"])
    if output.interaction is not None:
        aligned = {Task.MMU: objective.aia_mmu_coeff, Task.T2I: objective.aia_t2i_coeff}
        for task in (task for task in tasks if aligned[task]):
            term = aia_loss(output.interaction, objective.aia_bands, task, totals.samples[task])
            terms[f"aia_{task.key}"] = term
            by_task[task.key] = by_task[task.key] + aligned[task] * term
    return Losses(by_task, others, terms)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[JointBatch],
    objective: Objective,
    tasks: Sequence[Task],
    routing: str | None,
    max_grad_norm: float,
    parallel: Parallel | None = None,
    expert_groups: Sequence[int] = (),
    gradients: Gradients | None = None,
    shield: Callable[[Batch], SharedShield] | None = None,
    draw: tuple[int, int] = (0, 0),
) -> StepResult:
    """Run one optimizer step.

    Args:
        model: in training mode, as ``parallel`` wrapped it.
        optimizer: over the weights that train.
        parts: this process's share of the step, cut for accumulation; each holds every task.
        objective: weights of the losses.
        tasks: tasks the run has data of; weights private to others are held.
        routing: "label", "learned", or None for the model's own.
        max_grad_norm: clipping.
        parallel: the processes that share the step; by default this one alone.
        expert_groups: experts in each group of the mixtures, to count where tokens went; by default nothing is counted.
        gradients: how they are made; by default of the sum of all losses.
        shield: what the tokens of a batch teach the shared experts; by default everything.
        draw: the run's seed and the step's number, from which gradient methods that draw start.

    Raises:
        TrainingDivergedError: a loss or a gradient is NaN or infinite in any process; nothing was updated.
    """
    parallel = parallel or Parallel()
    gradients = gradients or Gradients(parallel=parallel)
    totals = Totals.of(parts, parallel, parallel.trained(model).spans if objective.looks_across else None)
    measured: dict[str, Tensor] = {}
    right: list[Tensor] = []
    counted: list[Tensor | None] = []
    optimizer.zero_grad(set_to_none=True)
    for number, part in enumerate(parts):
        with parallel.gradients(model, last=number == len(parts) - 1 and not gradients.strategy.by_task), parallel.precision():
            output = model(
                batch=part,
                routing=routing,
                interaction=objective.looks_across,
                shield=None if shield is None else [shield(batch) for batch in part],
            )
            losses = losses_of_part(output, part, objective, tasks, totals, parallel.sum)
            gradients.backward(losses)
        for name, term in losses.terms.items():
            measured[name] = measured.get(name, torch.zeros_like(term)) + term.detach()
        hits = routed_right(part, output.routing)
        right += [] if hits is None else [hits]
        counted += [count_routing(part, output.routing, expert_groups)] if expert_groups else []
    means = dict(zip(measured, parallel.sum(torch.stack([*measured.values()])).tolist(), strict=True))
    if not all(math.isfinite(value) for value in means.values()):
        raise TrainingDivergedError(
            f"the loss is not finite ({means}): lower learning_rate or max_grad_norm, or raise warmup_steps"
        )
    gradients.combine(optimizer, draw)
    hold_absent_tasks(model, [task for task in Task if task not in tasks])
    weights: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
    norm = parallel.whole(torch.nn.utils.clip_grad_norm_(weights, max_grad_norm)).item()
    if not math.isfinite(norm):  # AdamW would carry it into every weight, and the next checkpoint replace the last good one
        raise TrainingDivergedError(
            f"the gradient is not finite (norm {norm}, losses {means}): lower learning_rate or max_grad_norm, or raise warmup_steps"
        )
    optimizer.step()
    accuracy = {}
    if right:
        shares = parallel.sum(torch.stack(right).sum(0)) / totals.tokens
        accuracy = {task.key: shares[task].item() for task in Task if totals.tokens[task]}
    tables = [table for table in counted if table is not None]
    routing_counts = parallel.sum(torch.stack(tables).sum(0)) if tables else None
    tokens = dict(zip(TASK_KEYS, totals.tokens.tolist(), strict=True))
    return StepResult(means, accuracy, norm, tokens, routing_counts)
