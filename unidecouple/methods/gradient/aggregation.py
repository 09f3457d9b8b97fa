"""TorchJD's aggregators on lists of gradients: by weights from the tasks' Gramian where that is enough, else on their matrix."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from unidecouple.extras import missing_package

if TYPE_CHECKING:
    from torchjd.aggregation import Aggregator

Tensors = list[Tensor]
"""Gradients of several weights, in a fixed order."""

TaskGradients = Mapping[str, Tensors]
"""Each task's gradients by its key ("mmu", "t2i"), or the one of their sum ("total"); the same weights in the same order."""

Momenta = Sequence[Tensor | None]
"""Adam's first moment (``exp_avg``) of the same weights; None before a weight's first step."""

Setting = int | float | str | list[float]
"""An argument of an aggregator as a configuration holds it; a list stands for a tensor."""


def make(name: str, like: Tensor | None = None, /, **settings: Setting) -> Aggregator:
    """Create TorchJD's aggregator ``name``; TorchJD is imported here, since it imports its solvers.

    Args:
        name: TorchJD's name of the aggregator.
        like: a gradient to work on; its device and type are those of the tensors made from lists.
        settings: arguments of the aggregator.

    Raises:
        ValueError: TorchJD has no such aggregator, the settings do not fit it, its solver is not installed, or it keeps state
            between steps, which our checkpoints do not store.
    """
    from torchjd import Stateful, aggregation

    every = {key: getattr(aggregation, key) for key in aggregation.__all__ if not key.endswith(("Aggregator", "Weighting"))}
    kinds: dict[str, type[Aggregator]] = {key: kind for key, kind in every.items() if issubclass(kind, aggregation.Aggregator)}
    known = sorted(key for key, kind in kinds.items() if not issubclass(kind, Stateful))
    if name not in known:
        why = "keeps a memory between steps, so that a resumed run would differ" if name in kinds else "is none of TorchJD's"
        raise ValueError(f"gradient: {name!r} {why}; choose from its stateless aggregators: {', '.join(known)}")
    device, dtype = ("cpu", torch.float32) if like is None else (like.device, like.dtype)
    if issubclass(kinds[name], aggregation.GramianWeightedAggregator):
        dtype = torch.float64  # as ``gramian``
    lists = {key: torch.tensor(value, dtype=dtype, device=device) for key, value in settings.items() if isinstance(value, list)}
    try:
        return kinds[name](**(settings | lists))
    except ImportError as error:
        raise missing_package(f"gradient: the solver of {name}", "gradient", error) from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"gradient: {name} does not take the settings {settings}: {error}") from error


def aggregate(aggregator: Aggregator, gradients: TaskGradients, scale: float = 1.0) -> Tensors:
    """``scale`` times the direction that ``aggregator`` gives; a task's gradients without another's stay as they are.

    An aggregator that draws takes torch's generator as it stands: see ``draws``. Gradients that are not finite are summed: solvers
    would fail on them in ways of their own, and the sum shows the step what it refuses.

    Args:
        aggregator: from ``make``.
        gradients: overwritten.
        scale: on the direction.
    """
    from torchjd.aggregation import GramianWeightedAggregator

    rows = list(gradients.values())
    if len(rows) == 1:
        return rows[0]
    products = gramian(rows)
    if not products.isfinite().all():
        return weighted(rows, [1.0] * len(rows))
    if isinstance(aggregator, GramianWeightedAggregator):
        return weighted(rows, [scale * weight for weight in aggregator.gramian_weighting(products).tolist()])
    direction = aggregator(torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]))
    sizes = [g.numel() for g in rows[0]]
    return [scale * part.view_as(g) for part, g in zip(direction.split(sizes), rows[0], strict=True)]


def gramian(rows: Sequence[Tensors]) -> Tensor:
    """(tasks, tasks) float64 inner products of the tasks' gradients over all their weights."""
    out = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows[0][0].device)
    for i, j in itertools.combinations_with_replacement(range(len(rows)), 2):
        dots = [torch.dot(a.flatten(), b.flatten()) for a, b in zip(rows[i], rows[j], strict=True)]
        out[i, j] = out[j, i] = torch.stack(dots).double().sum()
    return out


def weighted(rows: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
    """``sum_t w_t g_t``, written over the first row."""
    for g in rows[0]:
        g.mul_(weights[0])
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        for g, other in zip(rows[0], row, strict=True):
            g.add_(other, alpha=weight)
    return rows[0]


@contextlib.contextmanager
def draws(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Random draws inside are a function of the run's ``seed`` and ``step`` alone, and the generator is left as it was.

    So a resumed run draws what the unbroken one drew, and neither how a step is cut nor on how many processes changes a draw.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]))
        yield
