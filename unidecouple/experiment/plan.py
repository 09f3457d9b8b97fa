"""An experiment: scenarios x variants x learning rates x seeds, as a list of runs that share data and steps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from unidecouple import config as configs
from unidecouple.methods.stage import Objective, Stage
from unidecouple.methods.structure import Dense, Structure
from unidecouple.run import RunConfig

START = "start"
"""Variant name of the base before training, scored once a scenario."""

_UNDERSTANDING_PARTS = ("vision", "text_head", "embeddings")


@dataclass(frozen=True)
class Scenario:
    """What is trained on.

    Attributes:
        description: one sentence for the report.
        model_name_or_path: the base to start from.
        t2i_batch_size: generation samples a step.
        mmu_batch_size: understanding samples a step (the replay).
    """

    description: str
    model_name_or_path: str
    t2i_batch_size: int
    mmu_batch_size: int


@dataclass(frozen=True)
class Rate:
    """A point of the learning-rate grid that every variant is run at.

    Attributes:
        factor: on every learning rate.
        understanding: further factor on the vision tower, the text embeddings and the text head.
    """

    factor: float = 1.0
    understanding: float = 1.0


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        description: one sentence for the report; says what is ours and not a paper's.
        structure, stages, objective: see ``RunConfig``.
        tasks: "both", or a single-task run.
        router_pairs: see ``Data``.
        scenarios: run in these only; empty means all.
        rates: run at these points of the grid only; empty means all.
    """

    description: str
    structure: Structure = field(default_factory=Dense)
    stages: tuple[Stage, ...] = (Stage(),)
    objective: Objective = field(default_factory=Objective)
    tasks: Literal["both", "mmu", "t2i"] = "both"
    router_pairs: int = 0
    scenarios: tuple[str, ...] = ()
    rates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """The whole grid. ``run`` holds what all runs share (data, steps, evaluation)."""

    name: str
    scenarios: dict[str, Scenario]
    variants: dict[str, Variant]
    seeds: tuple[int, ...] = (0,)
    rates: dict[str, Rate] = field(default_factory=lambda: {"": Rate()})
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(frozen=True)
class Job:
    """One training run of an experiment, and the folder (relative to the experiment's) that it is kept in.

    Variants that come to the same configuration in some scenario (generation data only makes joint and generation-only
    training one) share one run: the same ``folder``, trained once.
    """

    scenario: str
    variant: str
    seed: int
    config: RunConfig
    folder: Path


def jobs(experiment: Experiment) -> list[Job]:
    """All jobs of ``experiment``, the starts first.

    Raises:
        ValueError: a variant names a scenario or a rate that the experiment has not.
    """
    _check(experiment)
    planned: list[Job] = []
    folders: dict[str, Path] = {}
    for scenario in experiment.scenarios:
        for variant, rate, seed in _cells(experiment, scenario):
            config = _config(experiment, scenario, variant, rate, seed)
            name = f"{variant}@{rate}" if rate else variant
            folder = folders.setdefault(configs.dump(config), Path(scenario) / name / f"seed{seed}")
            planned.append(Job(scenario, name, seed, config, folder))
    return sorted(planned, key=lambda job: job.variant != START)


def _cells(experiment: Experiment, scenario: str) -> list[tuple[str, str, int]]:
    cells = [(START, "", experiment.seeds[0])]
    replayed = experiment.scenarios[scenario].mmu_batch_size > 0
    for seed in experiment.seeds:
        for name, variant in experiment.variants.items():
            has_data = replayed or variant.tasks != "mmu"
            if has_data and (not variant.scenarios or scenario in variant.scenarios):
                cells += [(name, rate, seed) for rate in experiment.rates if not variant.rates or rate in variant.rates]
    return cells


def _config(experiment: Experiment, scenario: str, variant: str, rate: str, seed: int) -> RunConfig:
    setting, base = experiment.scenarios[scenario], experiment.run
    if variant == START:
        both = replace(base.data, t2i_batch_size=1, mmu_batch_size=1)  # sizes do not matter: nothing is trained
        return replace(base, model_name_or_path=setting.model_name_or_path, data=both, max_steps=0, seed=seed, stages=())
    chosen = experiment.variants[variant]
    data = replace(
        base.data,
        t2i_batch_size=0 if chosen.tasks == "mmu" else setting.t2i_batch_size,
        mmu_batch_size=0 if chosen.tasks == "t2i" else setting.mmu_batch_size,
        router_pairs=chosen.router_pairs,
    )
    return replace(
        base,
        model_name_or_path=setting.model_name_or_path,
        structure=chosen.structure,
        stages=tuple(_scaled(stage, experiment.rates[rate]) for stage in chosen.stages),
        objective=chosen.objective,
        data=data,
        seed=seed,
    )


def _scaled(stage: Stage, rate: Rate) -> Stage:
    train = {part: factor * (rate.understanding if part in _UNDERSTANDING_PARTS else 1.0) for part, factor in stage.train.items()}
    return replace(stage, learning_rate=stage.learning_rate * rate.factor, train=train)


def _check(experiment: Experiment) -> None:
    for name, variant in experiment.variants.items():
        for kind, wanted, known in (
            ("scenario", variant.scenarios, experiment.scenarios),
            ("rate", variant.rates, experiment.rates),
        ):
            for entry in wanted:
                if entry not in known:
                    raise ValueError(f"variant {name!r} names {kind} {entry!r}; this experiment has {', '.join(map(repr, known))}")
