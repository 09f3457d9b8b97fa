"""ESM (arXiv 2602.20208): changes merged in the directions of the outputs that each of them moves most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unidecouple import bounds
from unidecouple.batch import JointBatch
from unidecouple.methods.merging.rule import Rule, mean_change, shared_only
from unidecouple.methods.merging.tsv_m import nearest_orthonormal
from unidecouple.models.base import UnifiedModel

_NONE = 1e-10
"""Eigenvalues below this share of the largest are none."""


@dataclass(frozen=True)
class ESM:
    """Essential subspaces: ``theta = theta_0 + a dW``, of the principal components of what each change adds to a layer's outputs.

    Per linear layer and model, with the inputs X of ``samples`` samples of the model's own task: the components E and variances l
    of ``X tau^T``, at most ``floor(out/T)`` of them, and ``C = E^T tau``. Larger C are enlarged (by the square of their norm
    over the models' mean), and components by ``(l / mean l)^exponent``. Side by side, with C's columns weighted by their norms in
    the same way, both become the nearest orthonormal matrices times their mean singular value; ``dW = T E C``, times the square of
    its norm over the mean of the layers of one name.

    Ours, where the description leaves it open: components are centred; the factor is T (2 in the description, of 2 models); weights
    that are no linear layer's are averaged; a weight that one model alone changed is that model's.

    Attributes:
        samples: per model.
        exponent: of the variances.
        scale: a. null, the paper's choice, searches it between 0 and 5 on held-out data.
    """

    kind: Literal["esm"] = "esm"
    samples: int = 32
    exponent: float = 0.15
    scale: float | None = None

    def __post_init__(self) -> None:
        bounds.at_least(1, self, "samples")
        bounds.at_least(0, self, "exponent")
        if self.scale is not None:
            bounds.finite(self, "scale")

    def learn(
        self, model: UnifiedModel, tuned: Sequence[Mapping[str, Tensor]], inputs: Sequence[Sequence[JointBatch]]
    ) -> Callable[[float], Rule]:
        """The rule at each scale.

        Args:
            model: the base, to which it is restored.
            tuned: weights of the models to merge, by the base's names.
            inputs: of each model, samples of its task, one per batch.
        """
        base = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
        moments = [_moments(model, state, batches) for state, batches in zip(tuned, inputs, strict=True)]
        model.load_state_dict(base)
        found: dict[str, Tensor] = {}
        for name, start in base.items():
            moved = [state[name].double() - start.double() for state in tuned] if start.is_floating_point() else []
            if all(name in one for one in moments) and all(bool(tau.any()) for tau in moved):
                found[name] = merge_layer(moved, [one[name] for one in moments], self.exponent)
        kinds: dict[str, list[float]] = {}
        for name, change in found.items():
            kinds.setdefault(_kind(name), []).append(float(change.norm()))
        means = {kind: sum(norms) / len(norms) for kind, norms in kinds.items()}
        found = {name: change * (change.norm() / means[_kind(name)]) ** 2 for name, change in found.items()}
        return lambda scale: shared_only(lambda name, moved: scale * found[name] if name in found else mean_change(moved))


def merge_layer(moved: Sequence[Tensor], covariances: Sequence[Tensor], exponent: float) -> Tensor:
    """The merged change of one layer before it is scaled among layers.

    Args:
        moved: of each model, its change (out, in) in float64.
        covariances: of each model, that of the layer's inputs (in, in).
        exponent: of the variances.
    """
    most = moved[0].shape[0] // len(moved)
    directions, parts, variances = [], [], []
    for tau, covariance in zip(moved, covariances, strict=True):
        values, vectors = torch.linalg.eigh(tau @ covariance @ tau.T)
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        kept = min(most, int((values > _NONE * values[0]).sum()))
        directions.append(vectors[:, :kept])
        parts.append(vectors.T @ tau)
        variances.append(values[:kept])
    norms = torch.stack([part.norm() for part in parts])
    weights = (norms / norms.mean()) ** 2
    for number, values in enumerate(variances):
        weight = (values / values.mean()) ** exponent
        weight = weight / weight.mean()
        parts[number] = weight.unsqueeze(1) * (weights[number] * parts[number][: len(values)])
        directions[number] = directions[number] * weight
    left, right = torch.cat(directions, 1), torch.cat(parts)
    columns = right.norm(dim=0)
    right = right * (columns / columns.mean()) ** 2
    left, right = (nearest_orthonormal(one) * torch.linalg.svdvals(one).mean() for one in (left, right))
    return len(moved) * left @ right


@torch.no_grad()
def _moments(model: UnifiedModel, state: Mapping[str, Tensor], batches: Sequence[JointBatch]) -> dict[str, Tensor]:
    """Covariance (in, in) of the inputs of every linear layer that ``batches`` reach, by its weight's name."""
    model.load_state_dict(state)
    counts: dict[str, int] = {}
    sums: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}

    def see(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
            rows = given[0].detach().flatten(0, -2).double()
            counts[name] = counts.get(name, 0) + len(rows)
            sums[name] = sums.get(name, 0) + rows.sum(0)
            squares[name] = squares.get(name, 0) + rows.T @ rows

        return hook

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                hooks.callback(module.register_forward_pre_hook(see(f"{name}.weight")).remove)
        for joint in batches:
            model(batch=joint)
    return {name: squares[name] / n - torch.outer(sums[name], sums[name]) / n**2 for name, n in counts.items() if n}


def _kind(name: str) -> str:
    """Name of a layer without its place in the depth."""
    return ".".join(part for part in name.split(".") if not part.isdecimal())
