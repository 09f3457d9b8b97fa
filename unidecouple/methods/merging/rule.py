"""How one weight is merged: the interface of all methods, and its application to whole checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Coefficients = Callable[[str], Sequence[float]]
"""By a weight's name, the coefficient of each tuned model's difference from the base."""

OnStep = Callable[[int, float], None]
"""Called with each step of learning and its entropy in nats."""

States = Sequence[Mapping[str, Tensor]]
"""Weights of the models to merge, by the base's names."""

Rule = Callable[[str, Sequence[Tensor]], Tensor]
"""The merged change of a weight, from its name and each model's change ``tau_k`` in float64, not all of which are zero."""


def linear(coefficients: Coefficients) -> Rule:
    """``sum_k lambda_k tau_k``."""
    return lambda name, moved: _total([factor * tau for factor, tau in zip(coefficients(name), moved, strict=True)])


def shared_only(rule: Rule) -> Rule:
    """``rule`` for weights that several models changed; what one model alone changed is that model's.

    So generation's own modules stay whole, as the papers keep each task's classification head.
    """

    def keep(name: str, moved: Sequence[Tensor]) -> Tensor:
        changed = [tau for tau in moved if bool(tau.any())]
        return changed[0] if len(changed) == 1 and len(moved) > 1 else rule(name, moved)

    return keep


def mean_change(moved: Sequence[Tensor]) -> Tensor:
    """Plain mean: what norms, biases and other weights that are no matrices get."""
    return torch.stack(tuple(moved)).mean(0)


def merged(base: Mapping[str, Tensor], tuned: Sequence[Mapping[str, Tensor]], rule: Rule) -> dict[str, Tensor]:
    """``theta_0`` and the merged change of each weight, summed in float64 and rounded once to the base's type.

    What no model changed stays bit for bit, and so does what is no floating-point number.
    """
    out: dict[str, Tensor] = {}
    for name, start in base.items():
        if not start.is_floating_point() or all(bool((model[name] == start).all()) for model in tuned):
            out[name] = start
            continue
        whole = start.double()
        out[name] = (whole + rule(name, [model[name].double() - whole for model in tuned])).to(start.dtype)
    return out


def _total(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
