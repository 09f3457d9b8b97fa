"""Learning rates by group of tokens, where one stacked weight holds several groups.

Of experts: Symbiotic-MoE (arXiv 2604.07753) and Rosetta (arXiv 2607.00293, B.2). Of whole layers: LMFusion (arXiv 2412.15188),
which holds the modules that were there before and trains those added.

A rate belongs to a whole tensor in torch's optimizers, and scaling gradients does nothing to Adam's steps. So the step itself
is scaled: a group's rows go a share of the way that the optimizer took them, weight decay included. To rounding that is what
AdamW does at a rate of that share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unidecouple.models.groups import GROUP_NAMES
from unidecouple.models.sharing import group_by_of, group_rows
from unidecouple.train.trainable import local


@dataclass(frozen=True)
class ScaledRows:
    """Rows of a stacked weight, and the factor on their steps."""

    weight: nn.Parameter
    rows: range
    factor: float


def scaled_rows(model: nn.Module, rates: Mapping[str, float]) -> list[ScaledRows]:
    """Where the groups that ``rates`` names have weights that train.

    Those are their experts and their rows of the expert router, their sets of untied layers, and their low-rank updates where these
    are routed by task.

    Args:
        model: as the optimizer has its weights (whole, or this process's shards).
        rates: factor on the learning rate by name of a group, see ``GROUP_NAMES``; 0 holds the group.

    Raises:
        ValueError: no layer has such a group, or nothing of it trains.
    """
    stacked = list(group_rows(model))
    known = GROUP_NAMES[group_by_of(model)] if stacked else ()
    found: list[ScaledRows] = []
    for name, factor in rates.items():
        if name not in known:
            raise ValueError(f"group_lr_scale: {name!r} is no group of this model's weights; it has {', '.join(known) or 'none'}")
        mine = [ScaledRows(weight, rows[known.index(name)], factor) for weight, rows in stacked if weight.requires_grad]
        if not mine:
            raise ValueError(
                f"group_lr_scale: nothing of group {name!r} trains; train what the groups have apart (experts and expert_router, "
                "or norms, attention and ffn of untied layers), or leave it out"
            )
        found += mine
    return found


def zero_frozen_rows(parts: Sequence[ScaledRows], gradients: Mapping[int, Tensor | None]) -> None:
    """Zero the rows of ``parts`` that do not move at all in ``gradients``, so that they have no share in a norm or a direction.

    Args:
        parts: groups with rates of their own.
        gradients: by ``id`` of the weight.
    """
    for part in parts:
        gradient = gradients.get(id(part.weight))
        if part.factor == 0 and gradient is not None:
            local(gradient, part.rows).zero_()


def install_lr_scaling(optimizer: torch.optim.Optimizer, parts: Sequence[ScaledRows]) -> None:
    """From now on, ``optimizer`` moves ``parts`` by their factors, and all else as ever.

    They are copied for the length of its step, when no activations are held any more. What is held (factor 0) still has gradients
    and moments of Adam, since it lies in one tensor with what moves.
    """
    if not parts:
        return
    before: list[Tensor] = []

    @torch.no_grad()
    def copy(*_: Any) -> None:
        before.extend(local(part.weight, part.rows).clone() for part in parts)

    @torch.no_grad()
    def hold_back(*_: Any) -> None:
        for part, start in zip(parts, before, strict=True):
            now = local(part.weight, part.rows)
            now.copy_(start.lerp(now, part.factor))
        before.clear()

    optimizer.register_step_pre_hook(copy)
    optimizer.register_step_post_hook(hold_back)
