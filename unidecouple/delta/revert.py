"""Where the damage sits: the change of one group of modules after the other undone, against what the other task loses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from unidecouple.batch import Task
from unidecouple.delta.blend import Blend
from unidecouple.delta.held_out import HeldOut, mean
from unidecouple.delta.modules import kind_of, layer_of
from unidecouple.delta.verdict import of_losses, run_tests
from unidecouple.source import PrintLine

BLOCKS: Final = 4
"""Blocks of consecutive layers that attention, FFNs and norms are grouped by."""

Groups = Mapping[str, Sequence[str]]
"""Name of a group -> its weights."""


@dataclass(frozen=True)
class Reverted:
    """The tuned model with some groups as in the base.

    Attributes:
        groups: that were reverted, in order.
        losses: mean held-out loss of each task.
    """

    groups: tuple[str, ...]
    losses: Mapping[Task, float]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"groups": list(self.groups), **{task.key: loss for task, loss in self.losses.items()}}


def module_groups(names: Sequence[str], num_layers: int, blocks: int = BLOCKS) -> dict[str, list[str]]:
    """Weights ``names`` by module kind; those of decoder layers by kind and block of layers ("attention 0-5")."""
    size = max(1, math.ceil(num_layers / blocks))
    groups: dict[str, list[str]] = {}
    for name in names:
        label, layer = kind_of(name, known=True), layer_of(name, known=True)
        if layer is not None:
            first = layer // size * size
            last = min(first + size, num_layers) - 1
            label += f" {first}" if first == last else f" {first}-{last}"
        groups.setdefault(label, []).append(name)
    return groups


def revert_each(blend: Blend, held_out: HeldOut, groups: Groups, say: PrintLine) -> list[dict[str, Any]]:
    """Revert each group alone: both tasks' gain over the tuned model, its interval, and p after Holm over all groups."""
    start = held_out.losses(blend.tuned())
    found, measures = [], []
    for name, weights in groups.items():
        losses = held_out.losses(blend.tuned(weights))
        found.append(Reverted((name,), {task: mean(values) for task, values in losses.items()}))
        measures += [of_losses(task.key, start[task], losses[task]) for task in start]
        say(f"reverted {name}: {_shown(found[-1])}")
    results = iter(run_tests(measures, 0.0))
    rows = []
    for one in found:
        mine = {task: next(results).to_json() for task in start}
        changes = {
            task.key: {key: mine[task][key] for key in ("gain", "low", "high", "p_worse", "p_better", "verdict")} for task in start
        }
        rows.append(one.to_json() | {"gains": changes})
    return rows


def revert_greedily(blend: Blend, held_out: HeldOut, groups: Groups, say: PrintLine) -> list[Reverted]:
    """Revert the group after which the sum of both tasks' losses is least, then the next, until all are reverted.

    The first entry has none, the last all of them (the base).
    """

    def losses(chosen: tuple[str, ...]) -> Reverted:
        weights = [weight for name in chosen for weight in groups[name]]
        return Reverted(chosen, {task: mean(values) for task, values in held_out.losses(blend.tuned(weights)).items()})

    path = [losses(())]
    while len(path) <= len(groups):
        done = path[-1].groups
        tried = [losses((*done, name)) for name in groups if name not in done]
        path.append(min(tried, key=lambda one: sum(one.losses.values())))
        say(f"greedy, {len(path) - 1} of {len(groups)}: {path[-1].groups[-1]}, {_shown(path[-1])}")
    return path


def best_within(path: Sequence[Reverted], protected: Task, most: Callable[[float], bool]) -> Reverted:
    """The entry of ``path`` with the least loss of the other task among those whose ``protected`` loss passes ``most``."""
    fitting = [one for one in path if most(one.losses[protected])] or [path[-1]]
    other = Task.T2I if protected is Task.MMU else Task.MMU
    return min(fitting, key=lambda one: one.losses.get(other, 0.0))


def _shown(one: Reverted) -> str:
    return ", ".join(f"{task.key} loss {loss:.3f}" for task, loss in one.losses.items())
