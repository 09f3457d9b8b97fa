"""In which form each weight of one task is kept: ranks, shares of energy under a budget, whole weights, or signs of entries."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from unidecouple import bounds
from unidecouple.delta.spectrum import Spectrum

FULL, BITS = "full", "bits"


@dataclass(frozen=True)
class Fidelity:
    """How much of each matrix's change is kept. One of the first four; ``budget`` goes with ``energy`` or ``bits``, or alone.

    Attributes:
        rank: of every matrix.
        energy: share of each matrix's energy (sum of squared singular values), by the smallest rank that has it.
        full: keep both weights.
        bits: one bit per number and a scale per matrix.
        budget: most bytes of all weights per task together; ranks are chosen for the most energy of all (and at most ``energy`` of
            each).
            With ``bits`` that do not fit, the same share of the entries of every matrix has its sign kept, the largest entries.
    """

    rank: int | None = None
    energy: float | None = None
    full: bool = False
    bits: bool = False
    budget: int | None = None

    def __post_init__(self) -> None:
        chosen = [self.rank is not None, self.energy is not None, self.full, self.bits]
        if sum(chosen) > 1 or not (any(chosen) or self.budget is not None):
            raise ValueError("choose one of a rank, a share of energy, full matrices or bits")
        if self.budget is not None and (self.rank is not None or self.full):
            raise ValueError("a size budget chooses ranks itself: give it alone, or with a share of energy or bits")
        bounds.at_least(1, self, "budget")
        if self.rank is not None:
            bounds.at_least(1, self, "rank")
        if self.energy is not None:
            bounds.above(0, self, "energy", most=1)

    @property
    def needs_spectra(self) -> bool:
        """Whether singular values decide."""
        return self.energy is not None or (self.budget is not None and not self.bits)


@dataclass(frozen=True)
class ChangedMatrix:
    """A matrix (out, in) that changed; ``itemsize`` is the bytes of a number, ``spectrum`` that of its change where needed."""

    shape: tuple[int, int]
    itemsize: int
    spectrum: Spectrum | None = None

    @property
    def step(self) -> int:
        """Bytes of one more rank."""
        return sum(self.shape) * self.itemsize

    @property
    def whole(self) -> int:
        """Bytes of another matrix."""
        return self.entries * self.itemsize

    @property
    def entries(self) -> int:
        """Numbers in it."""
        return self.shape[0] * self.shape[1]

    @property
    def signs(self) -> int:
        """Bytes of ``bits``: one bit per number, rows padded to bytes, and a scale."""
        return self.shape[0] * -(-self.shape[1] // 8) + self.itemsize

    def sparse(self, count: int) -> int:
        """Bytes of ``sparse:count``: a place of 32 bits and a sign per entry, and a scale."""
        return 4 * count + -(-count // 8) + self.itemsize if count else 0


def choose_forms(matrices: Mapping[str, ChangedMatrix], fidelity: Fidelity) -> dict[str, str]:
    """Form of each matrix, as in ``task_deltas``; those that get no rank are left out.

    A low-rank form as large as the matrix itself becomes ``full``, which is exact.

    Raises:
        ValueError: the budget holds not even one rank.
    """
    if fidelity.full:
        return dict.fromkeys(matrices, FULL)
    if fidelity.bits:
        return _signs_within(matrices, fidelity.budget)
    if fidelity.rank is not None:
        ranks = dict.fromkeys(matrices, fidelity.rank)
    elif fidelity.budget is None:
        ranks = {name: _capped(matrix, fidelity.energy) for name, matrix in matrices.items()}
    else:
        ranks = _within(matrices, fidelity)
    return {name: _form(matrices[name], rank) for name, rank in ranks.items() if rank}


def _form(matrix: ChangedMatrix, rank: int) -> str:
    return FULL if rank * matrix.step >= matrix.whole else f"rank:{rank}"


def _signs_within(matrices: Mapping[str, ChangedMatrix], budget: int | None) -> dict[str, str]:
    """Signs of all entries; where ``budget`` is too small, of the largest share of entries that fits it, equal in all matrices."""
    if budget is None or sum(matrix.signs for matrix in matrices.values()) <= budget:
        return dict.fromkeys(matrices, BITS)
    whole = sum(matrix.entries for matrix in matrices.values())

    def counts(kept: int) -> dict[str, int]:
        return {name: kept * matrix.entries // whole for name, matrix in matrices.items()}

    def fits(kept: int) -> bool:
        return sum(matrices[name].sparse(count) for name, count in counts(kept).items()) <= budget

    low, high = 0, whole  # ``low`` fits
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    chosen = {name: f"sparse:{count}" for name, count in counts(low).items() if count}
    if not chosen:
        least = min(matrix.sparse(1) for matrix in matrices.values())
        raise ValueError(f"a budget of {budget:,} bytes holds no sign of any matrix (at least {least:,}): raise it")
    return chosen


def _capped(matrix: ChangedMatrix, energy: float | None) -> int:
    """Rank with ``energy``; where the spectrum does not reach it, one at which the matrix is kept whole."""
    assert matrix.spectrum is not None
    found = matrix.spectrum.rank_at(1.0 if energy is None else energy)
    return min(matrix.shape) if found is None else found


def _within(matrices: Mapping[str, ChangedMatrix], fidelity: Fidelity) -> dict[str, int]:
    """Ranks with the most energy within the budget: singular values in the order of energy per byte.

    A matrix whose next rank would make it as large as itself takes that one step whole: it becomes ``full`` or stays.
    """
    assert fidelity.budget is not None
    ranks, left = dict.fromkeys(matrices, 0), fidelity.budget
    streams = {name: _gains(matrix, _capped(matrix, fidelity.energy)) for name, matrix in matrices.items()}
    waiting: list[tuple[float, str, int]] = []

    def push(name: str) -> None:
        if (step := next(streams[name], None)) is not None:
            heapq.heappush(waiting, (-step[0], name, step[1]))

    for name in sorted(matrices):
        push(name)
    while waiting:
        _, name, cost = heapq.heappop(waiting)
        if cost <= left:
            left -= cost
            ranks[name] += 1
            push(name)
    if matrices and not any(ranks.values()):
        least = min(matrix.step for matrix in matrices.values())
        raise ValueError(f"a budget of {fidelity.budget:,} bytes holds no rank of any matrix (at least {least:,}): raise it")
    return ranks


def _gains(matrix: ChangedMatrix, most: int) -> Iterator[tuple[float, int]]:
    """Energy per byte, and bytes, of each further rank."""
    assert matrix.spectrum is not None
    for rank, value in enumerate(matrix.spectrum.values[:most].tolist(), start=1):
        if rank * matrix.step >= matrix.whole:
            rest = matrix.whole - (rank - 1) * matrix.step
            tail = matrix.spectrum.total * (1 - matrix.spectrum.energy_at(rank - 1))
            if rest > 0:
                yield tail / rest, rest
            return
        yield value**2 / matrix.step, matrix.step
