"""Early gradient shielding (arXiv 2604.07753, section 3.3): scale the gradient of some tokens into a shared expert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from unidecouple.models.lora import LoraLinear


@dataclass(frozen=True)
class SharedExpertGradScale:
    """Scale of some tokens' gradient into the weights of a shared expert.

    Attributes:
        tokens: (B, T) bool, the shielded tokens.
        factor: on their gradient; 0 stops it.
    """

    tokens: Tensor
    factor: float


def shielded(expert: nn.Module, x: Tensor, group: Tensor, shield: SharedExpertGradScale) -> Tensor:
    """``expert(x, group)`` with the gradient of shielded tokens into its weights scaled; the gradient of ``x`` does not change.

    Shielded tokens pass through the same weights behind an identity that scales gradients; each token is computed exactly once.
    Low-rank updates per task are not shared, so they are not shielded.

    Args:
        expert: maps N tokens.
        x: (N, H).
        group: (N,) group ids.
        shield: over the same N tokens.
    """
    mask = shield.tokens.flatten()
    order = mask.long().argsort(stable=True)
    count = [int((~mask).sum()), int(mask.sum())]
    (free, held), (free_group, held_group) = x[order].split(count), group[order].split(count)
    out = torch.cat([expert(free, free_group), functional_call(expert, _behind(expert, shield.factor), (held, held_group))])
    return torch.empty_like(out).index_copy(0, order, out)


def _behind(expert: nn.Module, factor: float) -> dict[str, Tensor]:
    """Return the weights of ``expert``, with gradients scaled by ``factor``."""
    low = [module for module in expert.modules() if isinstance(module, LoraLinear) and module.groups > 1]
    own = {id(weight) for module in low for weight in (module.lora_A, module.lora_B)}
    return {
        name: weight if id(weight) in own else cast(Tensor, _Scaled.apply(weight, factor)) if factor else weight.detach()
        for name, weight in expert.named_parameters()
    }


class _Scaled(torch.autograd.Function):
    """The identity, whose gradient is scaled."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, factor: float) -> Tensor:
        """``weight`` itself."""
        ctx.factor = factor
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """``factor`` times the gradient."""
        return ctx.factor * gradients[0], None
