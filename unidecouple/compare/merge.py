"""A variant that trains nothing of its own: the models of other variants' runs, merged (arXiv 2212.04089, 2310.02575)."""

from __future__ import annotations

from dataclasses import dataclass, field

from unidecouple.methods.merging import AdaMerging, Merging, TaskArithmetic
from unidecouple.run import RunConfig

MERGED, RECORD = "merged", "merge.yaml"
"""In a merged variant's folder: the checkpoint that is scored, and what says of which merge it is."""


@dataclass(frozen=True)
class Merge:
    """What is merged, and how.

    Attributes:
        of: names of variants of the same grid, usually one per task. Their runs of the same scenario, rate and seed are merged;
            they are trained once, whether or not they have rows of their own.
        method: see ``methods/merging``. A method that learns sees the scenario's training data again, without its loss.
    """

    of: tuple[str, ...]
    method: Merging = field(default_factory=TaskArithmetic)

    @property
    def inputs(self) -> tuple[int, int]:
        """Steps, and samples of each task, that the merge itself looks at."""
        if isinstance(self.method, AdaMerging):
            return self.method.steps, self.method.steps * self.method.batch_size
        return 0, 0


@dataclass(frozen=True)
class MergeRecord:
    """Everything that defines a merged run, paths relative to the comparison's folder, so that it may be moved.

    Attributes:
        of: folders of the runs that are merged.
        method: how.
        run: its start is the base of all of them; what is scored is the merged model in its place.
    """

    of: tuple[str, ...]
    method: Merging
    run: RunConfig


def words(method: Merging) -> list[str]:
    """Options of ``unidecouple merge`` that mean ``method``."""
    if isinstance(method, AdaMerging):
        learned = {"--learning-rate": method.learning_rate, "--steps": method.steps, "--batch-size": method.batch_size}
        options: dict[str, object] = {"--method": method.kind, "--scale": method.start, **learned}
    else:
        options = {"--method": method.kind, "--scale": method.scale}
    return [str(word) for option in options.items() for word in option]
