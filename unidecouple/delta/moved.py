"""How far and in how many directions fine-tuning moved each weight, module kind and layer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

from torch import Tensor

from unidecouple.delta.modules import kind_of, layer_of
from unidecouple.delta.pair import Pair, check_same_base, difference, is_shared_matrix, squared_norm
from unidecouple.delta.spectrum import Spectrum, as_matrices, spectrum
from unidecouple.source import PrintLine

ENERGIES: Final = (0.5, 0.9, 0.99)
LARGEST: Final = 256
"""Singular values that a randomised SVD takes of a large matrix."""


@dataclass(frozen=True)
class Moved:
    """Change of one weight.

    Attributes:
        name, kind, layer, shape: of the weight; ``layer`` is None outside the decoder's layers.
        numbers: in it.
        squared, base_squared: squared norms of the change and of the weight before.
        ranks: singular values that hold 50, 90 and 99% of the energy of the change; of a stack the largest of its matrices.
            None in place of a rank above ``LARGEST``. Empty for vectors.
    """

    name: str
    kind: str
    layer: int | None
    shape: tuple[int, ...]
    numbers: int
    squared: float
    base_squared: float
    ranks: tuple[int | None, ...]

    @property
    def relative(self) -> float | None:
        """Norm of the change over norm of the weight; None where the weight was zero."""
        return math.sqrt(self.squared / self.base_squared) if self.base_squared else (None if self.squared else 0.0)


def measure_moved(pair: Pair, say: PrintLine = lambda line: None) -> list[Moved]:
    """Measure every floating-point weight, in the order of the checkpoint.

    Raises:
        ValueError: the tuned model is not of this base (``check_same_base``).
    """
    known, found, kinds = pair.base.config is not None, [], 0
    changed = whole = 0.0
    for name, before, after in pair.tensors():
        if not before.is_floating_point():
            continue
        tau = difference(before, after)
        squared, base_squared = squared_norm(tau), squared_norm(before)
        layer = layer_of(name, known)
        found.append(
            Moved(name, kind_of(name, known), layer, tuple(before.shape), before.numel(), squared, base_squared, _ranks(name, tau))
        )
        if is_shared_matrix(name, before, known):
            changed, whole = changed + squared, whole + base_squared
        if layer is not None and layer + 1 > kinds:
            kinds = layer + 1
            say(f"layer {layer}: measured")
    check_same_base(pair, math.sqrt(changed / whole) if whole else 0.0)
    return found


def to_json(moved: Iterable[Moved]) -> dict[str, Any]:
    """Totals, sums by module kind and by kind and layer, and every weight."""
    rows = list(moved)
    total = sum(row.squared for row in rows)
    by_kind: dict[tuple[str, int | None], list[Moved]] = defaultdict(list)
    for row in rows:
        by_kind[row.kind, None].append(row)
        if row.layer is not None:
            by_kind[row.kind, row.layer].append(row)
    return {
        "total": _summed(rows, total),
        "energies": list(ENERGIES),
        "kinds": [{"kind": kind, **_summed(some, total)} for (kind, layer), some in by_kind.items() if layer is None],
        "layers": [{"kind": kind, "layer": n, **_summed(some, total)} for (kind, n), some in by_kind.items() if n is not None],
        "weights": [
            {key: value for key, value in asdict(row).items() if key not in ("squared", "base_squared")}
            | {"norm": math.sqrt(row.squared), "relative": row.relative, "share": row.squared / total if total else 0.0}
            for row in rows
        ],
    }


def _summed(rows: list[Moved], total: float) -> dict[str, Any]:
    squared, before = sum(row.squared for row in rows), sum(row.base_squared for row in rows)
    return {
        "numbers": sum(row.numbers for row in rows),
        "changed": sum(row.squared > 0 for row in rows),
        "of": len(rows),
        "norm": math.sqrt(squared),
        "relative": math.sqrt(squared / before) if before else None,
        "share": squared / total if total else 0.0,
        "median_ranks": [_median([row.ranks[at] for row in rows if row.ranks and row.squared]) for at in range(len(ENERGIES))],
    }


def _median(ranks: list[int | None]) -> int | None:
    """Lower median; a rank beyond what was measured counts as the largest, and None stands for it."""
    ordered = sorted(ranks, key=lambda rank: math.inf if rank is None else rank)
    return ordered[(len(ordered) - 1) // 2] if ordered else None


def _ranks(name: str, tau: Tensor) -> tuple[int | None, ...]:
    found: list[Spectrum] = [spectrum(name, matrix, LARGEST) for matrix in as_matrices(tau)]
    if not found:
        return ()
    at = [[one.rank_at(share) for one in found] for share in ENERGIES]
    return tuple(None if None in ranks else max(rank for rank in ranks if rank is not None) for ranks in at)
