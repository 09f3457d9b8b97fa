"""The runs of a comparison: scenarios x variants x learning rates x seeds, which share data and steps."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unidecouple import config as configs
from unidecouple.batch import Task
from unidecouple.compare.checks import check_grid
from unidecouple.compare.grid import START, Comparison, Rate, Scenario, Variant
from unidecouple.compare.merge import RECORD, START_RECORD, Merge, MergeRecord, StartRecord
from unidecouple.data.settings import DataSettings
from unidecouple.methods.stage import Stage
from unidecouple.run import RunConfig
from unidecouple.train.run_folder import RUN

__all__ = ["START", "Comparison", "Job", "Rate", "Scenario", "Variant", "jobs"]

_UNDERSTANDING_PARTS = ("vision", "text_head", "embeddings")


@dataclass(frozen=True)
class Job:
    """One training run of a comparison, and the folder (relative to the comparison's) that it is kept in.

    Variants that come to the same configuration in some scenario (generation data only makes joint and generation-only
    training one) share one run: the same ``folder``, trained once.

    ``of`` are the variants whose models are merged or started from, ``parents`` the folders of their runs. A merged variant's
    ``config`` says how it is scored. Where there are parents, ``config`` names the start that they had; the model is theirs.
    """

    scenario: str
    name: str
    rate: str
    seed: int
    config: RunConfig
    folder: Path
    merge: Merge | None = None
    of: tuple[str, ...] = ()
    parents: tuple[Path, ...] = ()

    @property
    def variant(self) -> str:
        """Name in the results: with its point of the rate grid, as "dense_joint@lr=0.3"."""
        return f"{self.name}@{self.rate}" if self.rate else self.name

    @property
    def record(self) -> RunConfig | MergeRecord | StartRecord:
        """What its folder must say of itself to hold this job."""
        of = tuple(parent.as_posix() for parent in self.parents)
        if self.merge is not None:
            return MergeRecord(of, self.merge.method, self.config)
        return StartRecord(of[0], self.config) if of else self.config

    @property
    def record_name(self) -> str:
        """Name of the file that holds ``record``."""
        return RECORD if self.merge else START_RECORD if self.parents else RUN


def jobs(grid: Comparison) -> list[Job]:
    """All jobs of ``grid``, the starts first.

    Raises:
        ValueError: a variant names a scenario, a rate or a variant that the grid has not, or merges what cannot be merged.
    """
    check_grid(grid)
    planned: list[Job] = []
    folders: dict[str, Path] = {}
    for scenario in grid.scenarios:
        for variant, rate, seed in _cells(grid, scenario):
            config = _config(grid, scenario, variant, rate, seed)
            merge = grid.variants[variant].merge if variant != START else None
            of = grid.variants[variant].parents if variant != START else ()
            job = Job(scenario, variant, rate, seed, config, Path(), merge, of)
            job = replace(job, parents=_parents(job, planned))
            same = json.dumps(configs.plain(job.record))  # YAML would take seconds for a large grid
            folder = folders.setdefault(same, Path(scenario) / job.variant / f"seed{seed}")
            planned.append(replace(job, folder=folder))
    return sorted(planned, key=lambda job: job.name != START)


def _parents(job: Job, planned: Sequence[Job]) -> tuple[Path, ...]:
    """Folders of the runs of its parents in the same cell as ``job``."""
    there = {one.name: one.folder for one in planned if (one.scenario, one.rate, one.seed) == (job.scenario, job.rate, job.seed)}
    return tuple(there[name] for name in job.of)


def ancestors(job: Job, planned: Sequence[Job], done: Collection[Path] = ()) -> set[Path]:
    """Folders of the runs that ``job`` needs, directly or by way of others, but those ``done`` and what only they need."""
    parents = {one.folder: one.parents for one in planned}
    found: set[Path] = set()
    waiting = list(job.parents)
    while waiting:
        if (folder := waiting.pop()) not in done:
            found.add(folder)
            waiting += parents[folder]
    return found


def _cells(grid: Comparison, scenario: str) -> list[tuple[str, str, int]]:
    """Variant, rate and seed of each job, after the jobs that it is made of or starts from."""
    names = sorted(grid.variants, key=lambda name: depth(grid, name))
    points = {name: grid.points(scenario, name) for name in names}
    return [(START, "", grid.seeds[0])] + [(name, rate, seed) for seed in grid.seeds for name in names for rate in points[name]]


def depth(grid: Comparison, name: str) -> int:
    """0 of a variant that starts from the base, else one more than the highest of its parents."""
    return max((1 + depth(grid, parent) for parent in grid.variants[name].parents), default=0)


def _config(grid: Comparison, scenario: str, variant: str, rate: str, seed: int) -> RunConfig:
    setting, base = grid.scenarios[scenario], _on(grid, scenario, variant)
    if variant == START or grid.variants[variant].merge:
        return replace(base, model_name_or_path=setting.model_name_or_path, max_steps=0, seed=seed, stages=())
    chosen = grid.variants[variant]
    return replace(
        base,
        model_name_or_path=setting.model_name_or_path,
        structure=chosen.structure,
        stages=tuple(_scaled(stage, grid.rates[rate]) for stage in chosen.stages),
        objective=chosen.objective,
        max_steps=_first(chosen.max_steps, setting.max_steps, base.max_steps),
        seed=seed,
    )


def _on(grid: Comparison, scenario: str, variant: str) -> RunConfig:
    """The run that all share, on the data that ``variant`` sees in ``scenario``.

    On files, all runs are scored on the same held-out samples of both tasks, whichever of them they train.
    """
    run, setting = grid.run, grid.scenarios[scenario]
    chosen = Variant("") if variant == START else grid.variants[variant]
    sizes = {task: grid.batch_size(scenario, task) if chosen.tasks in ("both", task.key) else 0 for task in Task}
    data: DataSettings = replace(run.data, t2i_batch_size=sizes[Task.T2I], mmu_batch_size=sizes[Task.MMU])
    if run.data.SCORED_BY_LOSS:
        held_out = run.evaluation.eval_batch_size or max(grid.batch_size(scenario, task) for task in Task)
        run = replace(run, evaluation=replace(run.evaluation, eval_batch_size=held_out))
    elif variant == START or chosen.merge:
        return replace(run, data=replace(run.data, t2i_batch_size=1, mmu_batch_size=1))  # nothing is trained
    changed: dict[str, Any] = {**setting.data, **chosen.data}
    return replace(run, data=replace(data, **changed))


def _first(*values: int | None) -> int:
    """The first that is given; the last is."""
    return next(value for value in values if value is not None)


def _scaled(stage: Stage, rate: Rate) -> Stage:
    train = {part: factor * (rate.understanding if part in _UNDERSTANDING_PARTS else 1.0) for part, factor in stage.train.items()}
    return replace(stage, learning_rate=stage.learning_rate * rate.factor, train=train)
