"""A divergence of the model from itself without its low-rank updates, on one task's targets (MoDE, arXiv 2512.03125).

    ``L = mean_t KL(p_without(t) || p_with(t))`` over the task's target tokens t.

The paper keeps generation as it was while understanding is taught. Known to us by summary: the direction, the mean over tokens and
the heads, which both sides share as they are now, are ours. Where generation is new, there is nothing to keep in it; ``task: mmu``
keeps understanding instead (ours).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from unidecouple import bounds
from unidecouple.batch import Task
from unidecouple.methods.objective.terms import Microbatch, Term


@dataclass(frozen=True)
class SelfDistillation:
    """The divergence as an auxiliary loss of one task. It costs another forward pass over that task's samples.

    Attributes:
        coeff: lambda; 0.3 in the paper.
        task: whose targets; generation's in the paper.
    """

    kind: Literal["self_distillation"] = "self_distillation"
    coeff: float = 0.3
    task: Literal["mmu", "t2i"] = "t2i"

    needs_attention_stats: ClassVar[bool] = False
    per_microbatch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        bounds.at_least(0, self, "coeff")

    @property
    def of(self) -> Task:
        """``task``, by number."""
        return Task[self.task.upper()]

    def terms(self, part: Microbatch) -> dict[str, Term]:
        """``distill``, part of the task's loss; nothing where the coefficient is 0 or the run has no data of the task."""
        if not self.coeff or part.output.divergence is None or self.of not in part.tasks:
            return {}
        loss = part.output.divergence.total / part.totals.targets[self.of].clamp_min(1)
        return {"distill": Term(loss, self.coeff, self.of)}
