"""What papers say, put as differences that a grid measures; the report holds each against the scores."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """One claim of a paper, and how this grid tells whether it holds.

    It holds in a scenario where every difference named has its sign and a 95% interval, paired by seed, that excludes zero.

    Attributes:
        says: the claim, in one sentence.
        source: the paper, and where in it; "ours" for a claim of our own.
        of: the variant that the claim is about, at another rate as "moe@lr=0.3"; None if the grid cannot test the claim.
        against: the variant that ``of`` is compared with; None compares with zero.
        higher, lower: scores that must be higher, or lower, than in ``against``, by their names in ``results.json``: "pope" for a
            benchmark's main score, "geneval/counting", "interaction/correlation"; see ``compare.readings`` for others.
        step: training step of the measurement; None: the end of training.
        scenarios: scenarios of the claim; empty: all.
        settle: what would decide the claim, or why it cannot be tested here.
    """

    says: str
    source: str
    of: str | None = None
    against: str | None = None
    higher: tuple[str, ...] = ()
    lower: tuple[str, ...] = ()
    step: int | None = None
    scenarios: tuple[str, ...] = ()
    settle: str = ""

    def __post_init__(self) -> None:
        if self.of is None and (self.against or self.higher or self.lower or not self.settle):
            raise ValueError(f"claim {self.says!r} names no variant (`of`): say in `settle` why, and nothing else")
        if self.of is not None and not self.higher + self.lower:
            raise ValueError(f"claim {self.says!r} says nothing of {self.of!r}: name scores in `higher` or `lower`")
