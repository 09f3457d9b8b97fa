"""What each run sees: steps, samples and tokens of each task. Computed before anything runs, and equal or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

from unidecouple.batch import TASK_KEYS, Task
from unidecouple.compare.decoupled_config import decoupled_config
from unidecouple.compare.merge import Decoupling, Merge
from unidecouple.compare.plan import START, Comparison, Job, Variant
from unidecouple.convert.load import checkpoint_folder, load_processor
from unidecouple.data.file_batches import FileBatches
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.data.settings import Files
from unidecouple.models.families import UnifiedConfig
from unidecouple.plan.batch_shapes import Lengths
from unidecouple.plan.stages import PlanRequest, StagePlan, plan
from unidecouple.run import RunConfig
from unidecouple.train.stages import stage_steps

PAPER = PlanRequest((1,), dtype="fp32")
"""What is asked of ``plan``; parameters, lengths and FLOPs do not depend on it."""
MEASURED_BATCHES, MEASURED_SAMPLES = 4, 16
"""Batches, and samples of each, that lengths of users' files are measured on."""


@dataclass(frozen=True)
class Budget:
    """What one run sees.

    Attributes:
        steps: of each task: those that hold samples of it, in the stages that train it.
        samples: of each task, curriculum included.
        tokens: of each task, as planned: samples times their mean padded length. Tokens of router samples are in none.
        router_pictures: images shown to the task router besides (see ``router_aux_samples``); no samples of any task.
    """

    steps: Mapping[str, int]
    samples: Mapping[str, int]
    tokens: Mapping[str, int]
    router_pictures: int

    def to_json(self) -> dict[str, Any]:
        """As JSON's own types."""
        return asdict(self)


def budget(run: RunConfig, stages: Sequence[StagePlan]) -> Budget:
    """The budget of ``run``; ``stages`` are its plan, for lengths. A stage counts for the tasks that it trains, as in training."""
    known = [task for task in Task if run.data.batch_size(task)]
    steps, samples = dict.fromkeys(TASK_KEYS, 0), dict.fromkeys(TASK_KEYS, 0)
    pictures = begin = 0
    for stage, taken in stage_steps(run):
        span, begin = range(begin, begin + taken), begin + taken
        for task in stage.of(known):
            steps[task.key] += taken
            samples[task.key] += run.data.samples(task, span)
        pictures += taken * run.data.router_aux_samples if stage.tasks in ("both", Task.MMU.key) else 0
    lengths = {part.task.key: part.length for stage in stages for part in stage.load.step if part.counted}
    return Budget(steps, samples, {task: samples[task] * lengths.get(task, 0) for task in TASK_KEYS}, pictures)


def merged_budget(merge: Merge, parents: Sequence[VariantPlan]) -> Budget:
    """What the models that are merged have seen, together, and what the merge looks at itself."""
    own, seen = merge.inputs, [cell.budget for cell in parents]
    lengths = {
        task: max((one.tokens[task] // one.samples[task] for one in seen if one.samples[task]), default=0) for task in TASK_KEYS
    }
    looked_at = Budget(
        {task: own[task][0] for task in TASK_KEYS},
        {task: own[task][1] for task in TASK_KEYS},
        {task: own[task][1] * lengths[task] for task in TASK_KEYS},
        0,
    )
    return together([looked_at, *seen])


def together(budgets: Sequence[Budget]) -> Budget:
    """The sum of ``budgets``."""
    return Budget(
        {task: sum(one.steps[task] for one in budgets) for task in TASK_KEYS},
        {task: sum(one.samples[task] for one in budgets) for task in TASK_KEYS},
        {task: sum(one.tokens[task] for one in budgets) for task in TASK_KEYS},
        sum(one.router_pictures for one in budgets),
    )


@dataclass(frozen=True)
class VariantPlan:
    """A variant of a scenario as planned: its first job, budget, stages, and learning rates.

    A merged variant has no stages, but the plans ``of`` its parents, each once. A variant that starts from another one has both;
    its budget includes the other's.
    """

    job: Job
    budget: Budget
    stages: Sequence[StagePlan]
    rates: tuple[str, ...]
    of: tuple[VariantPlan, ...] = ()

    @property
    def result(self) -> UnifiedConfig:
        """Configuration of the model at the end. Of a decoupled one, as if every matrix and norm of the decoder had changed."""
        if self.stages:
            return self.stages[-1].config
        config, merge = self.of[0].result, self.job.merge
        return decoupled_config(config, merge.method, len(merge.of)) if merge and isinstance(merge.method, Decoupling) else config


def cells(planned: Sequence[Job]) -> dict[str, dict[str, VariantPlan]]:
    """Scenario -> variant -> cell, of all that train.

    Raises:
        ValueError: a variant cannot be what its recipe says (a stage trains what its model lacks, say).
    """
    found: dict[str, dict[str, VariantPlan]] = {}
    for job in planned:
        of = found.setdefault(job.scenario, {})
        if job.name != START and job.name not in of:
            parents = tuple(of[name] for name in dict.fromkeys(job.of))
            stages = () if job.merge else _planned(job, parents[0].result if parents else None)
            mine = [one for one in planned if (one.scenario, one.name, one.seed) == (job.scenario, job.name, job.seed)]
            tried: dict[Path, str] = {}
            for one in mine:
                tried.setdefault(one.folder, one.rate)  # a point that changes nothing shares another's run
            if job.merge:
                seen = merged_budget(job.merge, parents)
            else:
                seen = together([budget(job.config, stages), *(parent.budget for parent in parents)])
            of[job.name] = VariantPlan(job, seen, stages, tuple(tried.values()), parents)
    return found


def _planned(job: Job, start: UnifiedConfig | None) -> Sequence[StagePlan]:
    try:
        folder, data = str(checkpoint_folder(job.config.model_name_or_path)), job.config.data
        question = replace(PAPER, lengths=_lengths(folder, data)) if isinstance(data, Files) else PAPER
        return plan(replace(job.config, model_name_or_path=folder), question, start)
    except ValueError as error:
        raise ValueError(f"variant {job.name!r} in {job.scenario}: {error}") from error


@lru_cache(maxsize=64)  # the variants of a grid see few mixtures
def _lengths(base: str, files: Files) -> Lengths:
    """Mean padded lengths of batches of ``files`` with the processor of ``base``; at least an image's, as ``plan`` needs it."""
    processor = load_processor(base)
    builder = SequenceBuilder(processor)
    batches = FileBatches(files, processor, builder, 0)
    found: dict[Task, int] = {}
    for task, size in ((Task.MMU, files.mmu_batch_size), (Task.T2I, files.t2i_batch_size)):
        if size := min(size, MEASURED_SAMPLES):
            lengths = batches.lengths(task, size * MEASURED_BATCHES)
            longest = [max(lengths[first : first + size]) for first in range(0, len(lengths), size)]
            found[task] = max(round(fmean(longest)), builder.num_image_tokens + 3)
    return Lengths(found.get(Task.MMU), found.get(Task.T2I))


def check(grid: Comparison, found: Mapping[str, Mapping[str, VariantPlan]]) -> None:
    """Refuse a grid in which variants of one scenario see other budgets than its control, without saying why.

    A single-task variant is held to its own task's. Without the control, the first variant takes its place.

    Raises:
        ValueError: with every variant, task and number that differs.
    """
    unequal = []
    for scenario, of in found.items():
        measure = of.get(grid.control_name) or next(iter(of.values()), None)
        for name, cell in of.items():
            if measure is not None and not grid.variants[name].other_budget:
                unequal += [f"in {scenario}, {line}" for line in _unequal(grid.variants[name], cell, measure)]
    if unequal:
        lines = "\n  ".join(unequal)
        raise ValueError(
            f"variants that are compared must see equal budgets, but\n  {lines}\ngive them the same steps and stages, or say "
            "why they differ in the variant's other_budget, which the report prints"
        )


def _unequal(variant: Variant, cell: VariantPlan, measure: VariantPlan) -> list[str]:
    lines = []
    for task in TASK_KEYS:
        ours, theirs = cell.budget, measure.budget
        if variant.tasks in ("both", task) and (ours.steps[task], ours.samples[task]) != (theirs.steps[task], theirs.samples[task]):
            lines.append(
                f"{cell.job.name!r} sees {ours.samples[task]:,} {task} samples in {ours.steps[task]:,} steps, "
                f"{measure.job.name!r} {theirs.samples[task]:,} in {theirs.steps[task]:,}"
            )
    return lines
