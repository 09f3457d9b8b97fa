"""A variant that trains nothing of its own: the models of other variants' runs, merged or decoupled.

Merging is that of ``methods/merging``; decoupling (``delta/decouple.py``) serves each task by weights of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from unidecouple import bounds
from unidecouple.batch import TASK_KEYS, Task
from unidecouple.delta.distill import Distillation
from unidecouple.delta.forms import Fidelity
from unidecouple.methods.merging import AdaMerging, Concrete, Merging, TaskArithmetic
from unidecouple.methods.merging.options import words as merging_words
from unidecouple.run import RunConfig

MERGED, RECORD, BETWEEN, START_RECORD = "merged", "merge.yaml", "merged-first", "start.yaml"
"""In such a variant's folder: the checkpoint that is scored, how it was made, and a merge that decoupling starts from.

``START_RECORD`` is in the folder of a variant that starts from another one's model."""


@dataclass(frozen=True)
class Decoupling(Fidelity):
    """Weights per task, as `unidecouple decouple` makes them.

    Generation is served by the base and the change of the first model, in a form that keeps part of it. Understanding is the
    base's, or is served in the same way by the second model. One of ``rank``, ``energy``, ``full`` and ``bits`` is given, or
    ``budget`` alone or with ``energy`` or ``bits``.

    Attributes:
        rank: of every matrix of the change.
        energy: share of each matrix's energy (sum of squared singular values), by the smallest rank that has it.
        full: keep both weights of every matrix, which is exact.
        bits: one bit per number and a scale per matrix.
        budget: most bytes of all matrices together; ranks are chosen for the most energy, or with ``bits`` the share of signs.
        distill_steps: that match the first model's logits on images that it draws of the scenario's prompts.
        learning_rate: of distillation.
        onto: of two models: they are merged by this method first, and the merged model takes the base's place, as in ESM++
            (arXiv 2606.19164) with the task known.
    """

    kind: Literal["decouple"] = "decouple"
    distill_steps: int = 0
    learning_rate: float = 1e-3
    onto: Merging | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        bounds.at_least(0, self, "distill_steps")
        bounds.above(0, self, "learning_rate")


Method = Merging | Decoupling


@dataclass(frozen=True)
class Merge:
    """What is merged, and how.

    Attributes:
        of: names of variants of the same grid, usually one per task. Their runs of the same scenario, rate and seed are merged;
            they are trained once, whether or not they have rows of their own. Decoupling takes one, whose generation is kept, or a
            second one for understanding (the same one again: both tasks get its change).
        method: see ``methods/merging``, and `unidecouple decouple`. A method that learns sees the scenario's training data again,
            without its loss.
    """

    of: tuple[str, ...]
    method: Method = field(default_factory=TaskArithmetic)

    @property
    def inputs(self) -> dict[str, tuple[int, int]]:
        """Of each task, steps and samples that the merge itself looks at."""
        method, none = self.method, (0, 0)
        if isinstance(method, AdaMerging | Concrete):
            return dict.fromkeys(TASK_KEYS, (method.batches, method.batches * method.batch_size))
        if isinstance(method, Decoupling):
            return {Task.MMU.key: none, Task.T2I.key: (method.distill_steps, method.distill_steps * Distillation.batch_size)}
        return dict.fromkeys(TASK_KEYS, none)


@dataclass(frozen=True)
class MergeRecord:
    """Everything that defines a merged run, paths relative to the comparison's folder, so that it may be moved.

    Attributes:
        of: folders of the runs that are merged.
        method: how.
        run: its start is the base of all of them; what is scored is the merged model in its place.
    """

    of: tuple[str, ...]
    method: Method
    run: RunConfig


@dataclass(frozen=True)
class StartRecord:
    """Everything that defines a run from another run's model, paths as in ``MergeRecord``.

    Attributes:
        of: folder of the run whose model is the start.
        run: how it is trained. Its start is the scenario's base, which the other run began with.
    """

    of: str
    run: RunConfig


def commands(method: Method, base: str, models: Sequence[str], target: Path, source: Sequence[str]) -> list[list[str]]:
    """The command lines that make the model, one after the other.

    Args:
        method: how.
        base: what all ``models`` started from.
        models: folders of runs.
        target: folder to write.
        source: options that name the recipe whose data a method that learns reads, and the cache.
    """
    options = [*words(method), "--output", str(target), *source]
    if not isinstance(method, Decoupling):
        return [["merge", base, *models, *options]]
    second = ["--understanding", models[1]] if len(models) > 1 else []
    if method.onto is None:
        return [["decouple", base, models[0], *second, *options]]
    between = target.with_name(BETWEEN)
    first = commands(method.onto, base, models, between, source)
    return [*first, ["decouple", str(between), models[0], *second, *options]]


def words(method: Method) -> list[str]:
    """Options of ``unidecouple merge`` or ``decouple`` that mean ``method``."""
    if isinstance(method, Decoupling):
        flags = [*["--full"] * method.full, *["--mode", "bits"] * method.bits]
        options: dict[str, object] = {"--rank": method.rank, "--energy": method.energy, "--budget": method.budget}
        if method.distill_steps:
            options |= {"--distill-steps": method.distill_steps, "--learning-rate": method.learning_rate}
        return [*flags, *(str(word) for option in options.items() if option[1] is not None for word in option)]
    return merging_words(method)
