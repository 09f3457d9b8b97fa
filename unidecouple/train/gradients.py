"""The gradients of a step: one backward pass of the whole loss, or one per task, combined where the tasks share weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from unidecouple.methods.gradient import Gradient, Sum
from unidecouple.methods.gradient.aggregation import draws
from unidecouple.methods.objective import Losses
from unidecouple.methods.optimizers import first_moment
from unidecouple.methods.selection import select
from unidecouple.models.sharing import unshared
from unidecouple.train.lr_scaling import ScaledRows, zero_frozen_rows
from unidecouple.train.parallel import Parallel

TOTAL = "total"
OTHERS = "others"


Found = list[Tensor | None]
"""A gradient for each weight that trains; None where the loss does not reach."""


@dataclass
class Gradients:
    """Makes the gradients of a stage's steps by ``strategy``.

    With a per-task strategy, each task's gradients are accumulated separately over the micro-batches of a step, summed over
    processes (without DDP's reduction, which supports one backward pass only), and combined once. This takes one copy of the
    gradients per task. Weights that every task's loss reaches and that the tasks share are combined; others get the sum.

    Attributes:
        strategy: how they are combined.
        weights: what trains.
        chosen: places in ``weights`` of those that ``strategy`` may work on.
        parallel: the processes that share the step.
        scaled_rows: rows of groups with a factor on the learning rate; those with factor 0 get no gradient.
    """

    strategy: Gradient = field(default_factory=Sum)
    weights: Sequence[nn.Parameter] = ()
    chosen: Sequence[int] = ()
    parallel: Parallel = field(default_factory=Parallel)
    scaled_rows: Sequence[ScaledRows] = ()
    _found: dict[str, Found] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, strategy: Gradient, parallel: Parallel, scaled_rows: Sequence[ScaledRows] = ()) -> Gradients:
        """For ``model``, of whose weights those that train require gradients.

        Raises:
            ValueError: ``strategy`` names no weight that trains and that the tasks share, or no process keeps gradients whole.
        """
        if strategy.by_task and not parallel.keeps_full_gradients:
            raise ValueError(
                f"gradient {strategy.kind!r} needs each task's gradient whole, and with parallel=fsdp no process has it: use ddp"
            )
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        named = select(trained, dict.fromkeys(strategy.parameters, 1.0), f"gradient {strategy.kind!r} on weights that train")
        own = unshared(model)
        chosen = [place for place, (name, weight) in enumerate(trained.items()) if name in named and id(weight) not in own]
        if strategy.parameters and not chosen:
            raise ValueError(
                f"gradient {strategy.kind!r} works on {', '.join(strategy.parameters)}, which belong to one task each: name "
                "weights that the tasks share, or train a low-rank update that is not per_task"
            )
        return cls(strategy, tuple(trained.values()), chosen, parallel, scaled_rows)

    def backward(self, losses: Losses) -> None:
        """Add the gradients of one micro-batch of the step."""
        if not self.strategy.by_task:
            (losses.total * self.parallel.size).backward()  # processes average their gradients, and each has a share of the sum
            return
        others = {OTHERS: torch.stack(losses.others).sum()} if losses.others else {}
        passes = {name: loss for name, loss in (losses.tasks | others).items() if loss.requires_grad}
        for left, (name, loss) in zip(reversed(range(len(passes))), passes.items(), strict=True):
            self._swap(name)
            loss.backward(retain_graph=left > 0)
            self._swap(name)

    @torch.no_grad()
    def combine(self, optimizer: torch.optim.Optimizer, draw: tuple[int, int] = (0, 0)) -> None:
        """Leave in every weight's ``grad`` what ``optimizer`` shall see; ``draw``, seed and step, seeds random methods."""
        found = {name: self._summed(rows) for name, rows in self._found.items()} or {TOTAL: [w.grad for w in self.weights]}
        self._found = {}
        for rows in found.values():  # before they are combined: frozen rows must not influence the others
            zero_frozen_rows(self.scaled_rows, dict(zip(map(id, self.weights), rows, strict=True)))
        if self.chosen or self.strategy.by_task:
            with draws(*draw, self.weights[0].device):
                self._combine(found, optimizer)

    def _combine(self, found: dict[str, Found], optimizer: torch.optim.Optimizer) -> None:
        others = found.pop(OTHERS, [None] * len(self.weights))
        met = [place for place in self.chosen if all(_reached(rows[place], len(found)) for rows in found.values())]
        rows = {name: [g for place in met if (g := all_rows[place]) is not None] for name, all_rows in found.items()}
        momenta = [first_moment(optimizer, self.weights[place]) for place in met]
        combined = dict(zip(met, self.strategy.combine(rows, momenta) if met else [], strict=True))
        for place, weight in enumerate(self.weights):
            apart = (all_rows[place] for all_rows in found.values())
            weight.grad = _plus(combined[place] if place in combined else functools.reduce(_plus, apart), others[place])

    def _swap(self, name: str) -> None:
        """Exchange the weights' gradients and those found under ``name``."""
        kept = self._found.get(name, [None] * len(self.weights))
        self._found[name] = [weight.grad for weight in self.weights]
        for weight, gradient in zip(self.weights, kept, strict=True):
            weight.grad = gradient

    def _summed(self, rows: Found) -> Found:
        """Summed over processes, each of which has a share of every loss; None stays where no process has a gradient."""
        if self.parallel.size == 1:
            return rows
        device = self.weights[0].device
        known = self.parallel.sum(torch.tensor([row is not None for row in rows], dtype=torch.int32, device=device)).tolist()
        filled = (torch.zeros_like(weight) if row is None else row for weight, row in zip(self.weights, rows, strict=True))
        return [self.parallel.sum_(row) if some else None for row, some in zip(filled, known, strict=True)]


def _reached(gradient: Tensor | None, tasks: int) -> bool:
    """Whether a loss reaches a weight; another task's head is in its graph, but with zeros."""
    return gradient is not None and (tasks == 1 or bool(gradient.any()))


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """``a + b``, written over ``a``."""
    return b if a is None else a if b is None else a.add_(b)
