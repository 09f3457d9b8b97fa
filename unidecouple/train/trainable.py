"""Trainable weights: from patterns to parameter groups, and their table."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unidecouple.batch import Task
from unidecouple.methods.selection import select
from unidecouple.methods.stage import PARTS, Stage
from unidecouple.models.experts import Experts
from unidecouple.models.sharing import unshared, weights_and_task_rows
from unidecouple.train.parallel import local_rows


def make_param_groups(model: nn.Module, train: Mapping[str, float], learning_rate: float) -> list[dict[str, Any]]:
    """Set ``requires_grad`` by ``train`` and return AdamW's parameter groups, one per learning rate, with names in "names"."""
    chosen = select([name for name, _ in model.named_parameters()], train)
    groups: dict[float, dict[str, list[Any]]] = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
        if name in chosen:
            group = groups.setdefault(chosen[name], {"params": [], "names": []})
            group["params"].append(parameter)
            group["names"].append(name)
    return [{**group, "lr": factor * learning_rate, "peak": factor * learning_rate} for factor, group in sorted(groups.items())]


def train_present_rows(model: nn.Module, groups: Sequence[dict[str, Any]], absent: Sequence[Task]) -> None:
    """Leave the experts of ``absent`` tasks without gradients and optimizer states: ``groups`` get the other rows alone.

    ``hold_absent_tasks`` gives the same weights at the price of both.
    """
    rows_of = {id(weight): rows for weight, rows in weights_and_task_rows(model)}
    parts: dict[int, nn.Parameter] = {}
    for module in (module for module in model.modules() if isinstance(module, Experts)):
        for name in ("gate_up_proj", "down_proj"):
            weight: nn.Parameter = getattr(module, name)
            gone = {row for task in absent for row in rows_of.get(id(weight), {}).get(task, ())}
            left = [row for row in range(len(weight)) if row not in gone]
            if weight.requires_grad and gone and left == list(range(left[0], left[-1] + 1)):
                parts[id(weight)] = module.train_rows(name, range(left[0], left[-1] + 1))
    for group in groups:
        group["params"] = [parts.get(id(weight), weight) for weight in group["params"]]


def train_all_rows(model: nn.Module) -> None:
    """Undo ``train_present_rows``."""
    for module in model.modules():
        if isinstance(module, Experts):
            module.trained_rows.clear()


def table(model: nn.Module, groups: Sequence[Mapping[str, Any]], group_lr_scale: Mapping[str, float] | None = None) -> str:
    """Return a table of trained parameters and peak learning rate by part, then factors of groups, as lines of text."""
    rates = {name: float(group["peak"]) for group in groups for name in group["names"]}
    sizes = {name: p.numel() for group in groups for name, p in zip(group["names"], group["params"], strict=True)}
    weights = list(model.named_parameters())
    lines = []
    for part, patterns in PARTS.items():
        mine = [(n, p) for n, p in weights if any(fnmatch.fnmatchcase(n, pattern) for pattern in patterns)]
        if mine:
            moving = [name for name, _ in mine if name in rates]
            rate = f"lr {rates[moving[0]]:.1e}" if moving else "frozen"
            trained = sum(sizes[name] for name in moving)
            lines.append(f"  {part:14} {trained:>9,} of {sum(p.numel() for _, p in mine):>9,} train   {rate}")
    lines += [f"  group {name:8} lr x {factor:g}" for name, factor in (group_lr_scale or {}).items()]
    return "\n".join(lines)


def check_shield(model: nn.Module, stage: Stage) -> None:
    """Refuse a shield that shields no trained weight.

    Raises:
        ValueError: the shared expert, if there is one, has no weight that trains and that the tasks share.
    """
    own = unshared(model)
    trained = (name for name, weight in model.named_parameters() if weight.requires_grad and id(weight) not in own)
    if stage.shield is not None and not any(".shared_expert." in name for name in trained):
        raise ValueError(
            f"stage {stage.name!r} shields the shared expert, of which nothing trains that the tasks share: leave out shield, or "
            "train shared_expert or a low-rank update of it that is not per_task"
        )


@torch.no_grad()
def hold_absent_tasks(model: nn.Module, absent: Sequence[Task]) -> None:
    """Zero the gradients of weights private to tasks that the run has no data of.

    Their tokens can only be misrouted ones, and Adam makes full-size steps of rare small gradients. With zero gradients
    (and no weight decay) Adam leaves a weight bit for bit where it is. A group's weights are private to a
    task only if the split of the tokens gives that task a group (``PRIVATE``).
    """
    for weight, rows in weights_and_task_rows(model) if absent else ():
        for task in absent:
            if task in rows and weight.grad is not None:
                local(weight.grad, rows[task]).zero_()


def local(stacked: Tensor, rows: range) -> Tensor:
    """Return this process's shard of ``rows`` of a stacked weight or gradient: a view, possibly of no rows."""
    held, first = local_rows(stacked)
    return held[max(0, rows.start - first) : max(0, rows.stop - first)]
