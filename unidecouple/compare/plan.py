"""A comparison: scenarios x variants x learning rates x seeds, as a list of runs that share data and steps."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from unidecouple import bounds
from unidecouple import config as configs
from unidecouple.compare.claim import Claim
from unidecouple.compare.merge import Merge, MergeRecord
from unidecouple.methods.objective import Objective
from unidecouple.methods.stage import Stage
from unidecouple.methods.structure import Dense, Structure
from unidecouple.run import RunConfig

START = "start"
"""Variant name of the base before training, scored once a scenario."""

CONTROL = "dense_joint"

_UNDERSTANDING_PARTS = ("vision", "text_head", "embeddings")


Axis = Literal["structure", "objective", "gradient", "schedule", "merging"]
"""Where a method parts the tasks."""


@dataclass(frozen=True)
class Scenario:
    """What is trained on.

    Attributes:
        description: one sentence for the report.
        model_name_or_path: the base to start from.
        t2i_batch_size: generation samples a step.
        mmu_batch_size: understanding samples a step (the replay).
        max_steps, simple_steps: in place of the run's; a base that can draw needs fewer, and no single objects to begin with.
    """

    description: str
    model_name_or_path: str
    t2i_batch_size: int
    mmu_batch_size: int
    max_steps: int | None = None
    simple_steps: int | None = None

    def __post_init__(self) -> None:
        bounds.at_least(0, self, "t2i_batch_size", "mmu_batch_size", "max_steps", "simple_steps")


@dataclass(frozen=True)
class Rate:
    """A point of the learning-rate grid that every variant is run at.

    Attributes:
        factor: on every learning rate.
        understanding: further factor on the vision tower, the text embeddings and the text head.
    """

    factor: float = 1.0
    understanding: float = 1.0

    def __post_init__(self) -> None:
        bounds.at_least(0, self, "factor", "understanding")


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        description: one sentence for the report; says what is ours and not a paper's.
        structure, stages, objective: see ``RunConfig``.
        tasks: "both", or a single-task run.
        router_pairs: see ``Data``.
        max_steps: in place of the scenario's; such a variant needs ``other_budget``.
        other_budget: why this variant may have other steps or samples than the control; the report prints it. Without it a
            grid of unequal budgets is refused.
        scenarios: run in these only; empty means all.
        rates: run at these points of the grid only; empty means all.
        axis: where it parts the tasks; the report groups variants by it. A control has none.
        merge: other variants' models in place of training; then all that says how to train is left out.
        title: what the report calls it; "" for its name, without underscores.
    """

    description: str
    structure: Structure = field(default_factory=Dense)
    stages: tuple[Stage, ...] = (Stage(),)
    objective: Objective = field(default_factory=Objective)
    tasks: Literal["both", "mmu", "t2i"] = "both"
    router_pairs: int = 0
    max_steps: int | None = None
    other_budget: str = ""
    scenarios: tuple[str, ...] = ()
    rates: tuple[str, ...] = ()
    axis: Axis | None = None
    merge: Merge | None = None
    title: str = ""

    def __post_init__(self) -> None:
        bounds.at_least(0, self, "router_pairs", "max_steps")


@dataclass(frozen=True)
class Comparison:
    """The whole grid.

    Without understanding data the control is generation-only training where the grid has it: there the two are one. A grid that
    names no control may lack it, and has no differences then.

    Attributes:
        name: of the grid; its results lie in ``runs/<name>`` unless ``--output`` says otherwise.
        scenarios: what is trained on, by name.
        variants: how it is trained, by name.
        seeds: every variant is run with each.
        rates: points of the grid over learning rates, by name; "" is the recipes' own.
        run: what all runs share (data, steps, evaluation).
        control: the variant that others are held against.
        claims: what papers claim; the report tells of each whether it holds.
    """

    name: str
    scenarios: dict[str, Scenario]
    variants: dict[str, Variant]
    seeds: tuple[int, ...] = (0,)
    rates: dict[str, Rate] = field(default_factory=lambda: {"": Rate()})
    run: RunConfig = field(default_factory=RunConfig)
    control: str = CONTROL
    claims: tuple[Claim, ...] = ()

    def __post_init__(self) -> None:
        if self.run.files is not None:
            raise ValueError("run.files is given, but comparisons are on the drawn world; train on files with `unidecouple train`")
        bounds.at_least(0, self, "seeds")
        for name in ("scenarios", "variants", "seeds", "rates"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: a comparison needs at least one of them")
        named: dict[str, str] = {}
        for name, variant in self.variants.items():
            if variant.title and (other := named.setdefault(variant.title, name)) != name:
                raise ValueError(
                    f"variants {other!r} and {name!r} have one title, {variant.title!r}; the report could not tell them apart"
                )


@dataclass(frozen=True)
class Job:
    """One training run of a comparison, and the folder (relative to the comparison's) that it is kept in.

    Variants that come to the same configuration in some scenario (generation data only makes joint and generation-only
    training one) share one run: the same ``folder``, trained once.

    A merged variant's ``config`` says how it is scored; ``parents`` are the folders of the runs that are merged.
    """

    scenario: str
    name: str
    rate: str
    seed: int
    config: RunConfig
    folder: Path
    merge: Merge | None = None
    parents: tuple[Path, ...] = ()

    @property
    def variant(self) -> str:
        """Name in the results: with its point of the rate grid, as "dense_joint@lr=0.3"."""
        return f"{self.name}@{self.rate}" if self.rate else self.name

    @property
    def record(self) -> RunConfig | MergeRecord:
        """What its folder must say of itself to hold this job."""
        if self.merge is None:
            return self.config
        return MergeRecord(tuple(parent.as_posix() for parent in self.parents), self.merge.method, self.config)


def jobs(grid: Comparison) -> list[Job]:
    """All jobs of ``grid``, the starts first.

    Raises:
        ValueError: a variant names a scenario, a rate or a variant that the grid has not, or merges what cannot be merged.
    """
    _check(grid)
    planned: list[Job] = []
    folders: dict[str, Path] = {}
    for scenario in grid.scenarios:
        for variant, rate, seed in _cells(grid, scenario):
            config = _config(grid, scenario, variant, rate, seed)
            merge = grid.variants[variant].merge if variant != START else None
            job = Job(scenario, variant, rate, seed, config, Path(), merge)
            job = replace(job, parents=_parents(job, merge.of, planned) if merge else ())
            folder = folders.setdefault(configs.dump(job.record), Path(scenario) / job.variant / f"seed{seed}")
            planned.append(replace(job, folder=folder))
    return sorted(planned, key=lambda job: job.name != START)


def _parents(job: Job, names: Sequence[str], planned: Sequence[Job]) -> tuple[Path, ...]:
    """Folders of the runs of ``names`` in the same cell as ``job``."""
    there = {one.name: one.folder for one in planned if (one.scenario, one.rate, one.seed) == (job.scenario, job.rate, job.seed)}
    return tuple(there[name] for name in names)


def _cells(grid: Comparison, scenario: str) -> list[tuple[str, str, int]]:
    """Variant, rate and seed of each job, the merged ones after what they are made of."""
    names = sorted(grid.variants, key=lambda name: grid.variants[name].merge is not None)
    points = {name: _points(grid, scenario, grid.variants[name]) for name in names}
    return [(START, "", grid.seeds[0])] + [(name, rate, seed) for seed in grid.seeds for name in names for rate in points[name]]


def _points(grid: Comparison, scenario: str, variant: Variant) -> list[str]:
    """Rates that ``variant`` is run at in ``scenario``: none where it has no data, a merged one's where all its parents' are."""
    if variant.scenarios and scenario not in variant.scenarios:
        return []
    if variant.tasks == "mmu" and not grid.scenarios[scenario].mmu_batch_size:
        return []
    known = [rate for rate in grid.rates if not variant.rates or rate in variant.rates]
    parents = [_points(grid, scenario, grid.variants[name]) for name in variant.merge.of] if variant.merge else []
    return [rate for rate in known if all(rate in theirs for theirs in parents)]


def _config(grid: Comparison, scenario: str, variant: str, rate: str, seed: int) -> RunConfig:
    setting, base = grid.scenarios[scenario], grid.run
    if variant == START or grid.variants[variant].merge:
        both = replace(base.data, t2i_batch_size=1, mmu_batch_size=1)  # sizes do not matter: nothing is trained
        return replace(base, model_name_or_path=setting.model_name_or_path, data=both, max_steps=0, seed=seed, stages=())
    chosen = grid.variants[variant]
    data = replace(
        base.data,
        t2i_batch_size=0 if chosen.tasks == "mmu" else setting.t2i_batch_size,
        mmu_batch_size=0 if chosen.tasks == "t2i" else setting.mmu_batch_size,
        router_pairs=chosen.router_pairs,
        simple_steps=_first(setting.simple_steps, base.data.simple_steps),
    )
    return replace(
        base,
        model_name_or_path=setting.model_name_or_path,
        structure=chosen.structure,
        stages=tuple(_scaled(stage, grid.rates[rate]) for stage in chosen.stages),
        objective=chosen.objective,
        data=data,
        max_steps=_first(chosen.max_steps, setting.max_steps, base.max_steps),
        seed=seed,
    )


def _first(*values: int | None) -> int:
    """The first that is given; the last is."""
    return next(value for value in values if value is not None)


def _scaled(stage: Stage, rate: Rate) -> Stage:
    train = {part: factor * (rate.understanding if part in _UNDERSTANDING_PARTS else 1.0) for part, factor in stage.train.items()}
    return replace(stage, learning_rate=stage.learning_rate * rate.factor, train=train)


def _check(grid: Comparison) -> None:
    if grid.control not in (*grid.variants, CONTROL):
        near = difflib.get_close_matches(grid.control, grid.variants, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"this grid has {', '.join(map(repr, grid.variants))}"
        raise ValueError(f"control={grid.control!r} is no variant, so nothing would be held against it ({hint})")
    for name, variant in grid.variants.items():
        for kind, wanted, known in (
            ("scenario", variant.scenarios, grid.scenarios),
            ("rate", variant.rates, grid.rates),
            ("variant", variant.merge.of if variant.merge else (), grid.variants),
        ):
            for entry in wanted:
                if entry not in known:
                    raise ValueError(f"variant {name!r} names {kind} {entry!r}; this grid has {', '.join(map(repr, known))}")
        if variant.merge is not None:
            _check_merge(grid, name, variant, variant.merge)
    for claim in grid.claims:
        _check_claim(grid, claim)


def _check_claim(grid: Comparison, claim: Claim) -> None:
    for scenario in claim.scenarios or grid.scenarios:
        if scenario not in grid.scenarios:
            known = ", ".join(map(repr, grid.scenarios))
            raise ValueError(f"claim {claim.says!r} names scenario {scenario!r}; this grid has {known}")
        for one in filter(None, (claim.of, claim.against)):
            name, _, rate = one.partition("@")
            if one != START and (name not in grid.variants or rate not in _points(grid, scenario, grid.variants[name])):
                raise ValueError(
                    f"claim {claim.says!r} names {one!r}, which is not run in {scenario}: name a variant of the grid, and a rate "
                    "that it has"
                )


def _check_merge(grid: Comparison, name: str, variant: Variant, merge: Merge) -> None:
    told = Variant("", other_budget=variant.other_budget, scenarios=variant.scenarios, rates=variant.rates, axis=variant.axis)
    if replace(variant, description="", title="", merge=None) != told:
        raise ValueError(f"variant {name!r} is merged and trains nothing: leave out structure, stages, objective, tasks and steps")
    if len(merge.of) < 2:
        raise ValueError(f"variant {name!r} merges {', '.join(merge.of) or 'nothing'}: name at least two variants")
    for parent in merge.of:
        theirs = grid.variants[parent]
        changed = [stage.name for stage in theirs.stages if stage.lora or stage.structure]
        if theirs.merge or theirs.structure != Dense() or changed:
            raise ValueError(
                f"variant {name!r} merges {parent!r}, which does not end as the base's own weights, only changed: merge dense "
                "variants without low-rank updates"
            )
