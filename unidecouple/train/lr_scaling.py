"""Learning rates by group of tokens, where one stacked weight holds several groups.

Of experts: Symbiotic-MoE (arXiv 2604.07753) and Rosetta (arXiv 2607.00293, B.2). Of whole layers: LMFusion (arXiv 2412.15188),
which freezes the pretrained modules and trains those added.

torch's optimizers have one learning rate per tensor, and Adam's steps do not change when gradients are scaled. So the step is
scaled: each group's update, weight decay included, is multiplied by its factor. Up to rounding this equals AdamW at the learning
rate times the factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unidecouple.models.groups import GROUP_NAMES
from unidecouple.models.sharing import group_by_of, weights_and_group_rows
from unidecouple.train.trainable import local


@dataclass(frozen=True)
class ScaledRows:
    """Rows of a stacked weight, and the factor on their steps."""

    weight: nn.Parameter
    rows: range
    factor: float


def scaled_rows(model: nn.Module, rates: Mapping[str, float]) -> list[ScaledRows]:
    """Find the trained rows of the groups that ``rates`` names.

    These are their experts, their rows of the expert router, their sets of per-group layers, and their low-rank updates if these
    are routed by task.

    Args:
        model: as the optimizer has its weights (whole, or this process's shards).
        rates: factor on the learning rate by name of a group, see ``GROUP_NAMES``; 0 freezes the group.

    Raises:
        ValueError: no layer has such a group, or nothing of it trains.
    """
    stacked = list(weights_and_group_rows(model))
    known = GROUP_NAMES[group_by_of(model)] if stacked else ()
    found: list[ScaledRows] = []
    for name, factor in rates.items():
        if name not in known:
            raise ValueError(f"group_lr_scale: {name!r} is no group of this model's weights; it has {', '.join(known) or 'none'}")
        mine = [ScaledRows(weight, rows[known.index(name)], factor) for weight, rows in stacked if weight.requires_grad]
        if not mine:
            raise ValueError(
                f"group_lr_scale: nothing of group {name!r} trains; train what each group has separately (experts and "
                "expert_router, or norms, attention and ffn of per-group layers), or leave it out"
            )
        found += mine
    return found


def zero_frozen_rows(parts: Sequence[ScaledRows], gradients: Mapping[int, Tensor | None]) -> None:
    """Zero the frozen rows of ``parts`` in ``gradients``, so that norms and gradient methods leave them out.

    Args:
        parts: rows with a factor; those with factor 0 are frozen.
        gradients: by ``id`` of the weight.
    """
    for part in parts:
        gradient = gradients.get(id(part.weight))
        if part.factor == 0 and gradient is not None:
            local(gradient, part.rows).zero_()


def install_lr_scaling(optimizer: torch.optim.Optimizer, parts: Sequence[ScaledRows]) -> None:
    """Make ``optimizer`` multiply its updates of ``parts`` by their factors, by hooks around its step.

    The rows are copied for the length of the step, when activations are freed already. Frozen rows (factor 0) keep gradients and
    Adam moments, since they share a tensor with rows that train.
    """
    if not parts:
        return
    before: list[Tensor] = []

    @torch.no_grad()
    def copy(*_: Any) -> None:
        before.extend(local(part.weight, part.rows).clone() for part in parts)

    @torch.no_grad()
    def scale(*_: Any) -> None:
        for part, start in zip(parts, before, strict=True):
            now = local(part.weight, part.rows)
            now.copy_(start.lerp(now, part.factor))
        before.clear()

    optimizer.register_step_pre_hook(copy)
    optimizer.register_step_post_hook(scale)
