"""Objectives: what is minimised. Each auxiliary loss is one file, a pure function of tensors and its settings.

To add one: a file with a frozen dataclass that has ``kind``, ``terms``, ``needs_attention_stats`` and ``per_microbatch`` (whether
its value depends on how a step is cut into micro-batches), and its name in ``AuxiliaryLoss``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

import torch

from unidecouple import bounds
from unidecouple.batch import Task
from unidecouple.methods.objective.aia import AttentionAlignment
from unidecouple.methods.objective.balance import LoadBalance
from unidecouple.methods.objective.group_router import GroupRouterLoss
from unidecouple.methods.objective.self_distillation import SelfDistillation
from unidecouple.methods.objective.terms import Losses, Microbatch, StepTotals, Term

AuxiliaryLoss = GroupRouterLoss | LoadBalance | AttentionAlignment | SelfDistillation
"""The typed union that recipes choose from by ``kind``, and that property tests run over."""

AUXILIARY_LOSSES: tuple[type[AuxiliaryLoss], ...] = get_args(AuxiliaryLoss)

_KEYS_OF_0_1 = {
    "group_coeff": ("group_router", "coeff"),
    "group_mmu_weight": ("group_router", "mmu_weight"),
    "balance_coeff": ("load_balance", "coeff"),
    "aia_mmu_coeff": ("attention_alignment", "mmu_coeff"),
    "aia_t2i_coeff": ("attention_alignment", "t2i_coeff"),
    "aia_targets": ("attention_alignment", "targets"),
}


@dataclass(frozen=True)
class Objective:
    """``L = lambda_mmu L_mmu + lambda_t2i L_t2i`` plus auxiliary losses (arXiv 2506.03591, eq. 2; no coefficient is published).

    Attributes:
        mmu_coeff, t2i_coeff: lambda of each task's cross-entropy.
        auxiliary: further losses, at most one of each kind. A list in a recipe replaces the whole list.
    """

    mmu_coeff: float = 1.0
    t2i_coeff: float = 1.0
    auxiliary: tuple[AuxiliaryLoss, ...] = (GroupRouterLoss(),)

    def __post_init__(self) -> None:
        bounds.at_least(0, self, "mmu_coeff", "t2i_coeff")
        kinds = [loss.kind for loss in self.auxiliary]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"auxiliary={kinds}: give each kind of loss once")

    @property
    def needs_attention_stats(self) -> bool:
        """Whether attention between the modalities must be measured in the forward pass."""
        return any(loss.needs_attention_stats for loss in self.auxiliary)

    @property
    def balances_experts(self) -> bool:
        """Whether a loss reads the expert routers' probabilities."""
        return any(isinstance(loss, LoadBalance) and loss.coeff for loss in self.auxiliary)

    @property
    def distilled(self) -> Task | None:
        """The task at whose targets the model is compared with itself without updates; None: it is not."""
        return next((loss.of for loss in self.auxiliary if isinstance(loss, SelfDistillation) and loss.coeff), None)

    @property
    def forward_options(self) -> dict[str, Any]:
        """Keyword arguments of the model's forward: what the losses read beyond cross-entropy and routing."""
        options = {"interaction": self.needs_attention_stats, "balanced": self.balances_experts}
        return options if self.distilled is None else options | {"distill": self.distilled}

    def losses(self, part: Microbatch) -> Losses:
        """Return all losses of a micro-batch, which sum to the step's over its micro-batches (but see ``per_microbatch``)."""
        sums = {Task.MMU: part.output.mmu.total, Task.T2I: part.output.t2i.total}
        coefficients = {Task.MMU: self.mmu_coeff, Task.T2I: self.t2i_coeff}
        terms = {task.key: sums[task] / part.totals.targets[task].clamp_min(1) for task in part.tasks}
        by_task = {task.key: coefficients[task] * terms[task.key] for task in part.tasks}
        others: list[torch.Tensor] = []
        for loss in self.auxiliary:
            for name, term in loss.terms(part).items():
                terms[name] = term.value
                if term.task is None:
                    others.append(term.coeff * term.value)
                else:
                    by_task[term.task.key] = by_task[term.task.key] + term.coeff * term.value
        return Losses(by_task, others, terms)

    @classmethod
    def migrate_keys(cls, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """``values`` of a recipe with the flat keys of version 0.1 moved into ``auxiliary``; and what each is called now."""
        old = {key: value for key, value in values.items() if key in _KEYS_OF_0_1}
        kept = {key: value for key, value in values.items() if key not in old}
        if not old:
            return kept, {}
        found = {loss.get("kind"): dict(loss) for loss in kept.get("auxiliary", [{"kind": "group_router"}])}
        for key, value in old.items():
            kind, name = _KEYS_OF_0_1[key]
            zeros = {"mmu_coeff": 0.0, "t2i_coeff": 0.0} if kind == "attention_alignment" else {}
            found.setdefault(kind, {"kind": kind, **zeros})[name] = value
        kept["auxiliary"] = [loss for loss in found.values() if _has_weight(loss)]
        return kept, {key: f"auxiliary: [{{kind: {kind}, {name}: …}}]" for key, (kind, name) in _KEYS_OF_0_1.items() if key in old}


def _has_weight(loss: Mapping[str, Any]) -> bool:
    """Return whether a loss, as a recipe's mapping, has a coefficient other than 0; a missing one has its default."""
    kinds = {kind.kind: kind for kind in AUXILIARY_LOSSES}
    if loss.get("kind") not in kinds:
        return True  # the schema will refuse it by name
    names = [field.name for field in fields(kinds[loss["kind"]]) if field.name.endswith("coeff")]
    return any(loss.get(name, 1.0) != 0 for name in names)


__all__ = [
    "AUXILIARY_LOSSES",
    "AttentionAlignment",
    "AuxiliaryLoss",
    "GroupRouterLoss",
    "LoadBalance",
    "Losses",
    "Microbatch",
    "Objective",
    "SelfDistillation",
    "StepTotals",
    "Term",
]
