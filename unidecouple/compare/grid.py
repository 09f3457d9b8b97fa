"""A comparison as recipes describe it: scenarios, variants, learning rates and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from unidecouple import bounds
from unidecouple.batch import Task
from unidecouple.compare.claim import Claim
from unidecouple.compare.merge import Merge
from unidecouple.methods.objective import Objective
from unidecouple.methods.stage import Stage
from unidecouple.methods.structure import Dense, Structure
from unidecouple.run import RunConfig

START = "start"
"""Variant name of the base before training, scored once a scenario."""


Axis = Literal["structure", "objective", "gradient", "schedule", "merging"]
"""Where a method parts the tasks."""


@dataclass(frozen=True)
class Scenario:
    """What is trained on.

    Attributes:
        description: one sentence for the report.
        model_name_or_path: the base to start from.
        t2i_batch_size: generation samples per step; None: as in ``run``.
        mmu_batch_size: understanding samples per step (the replay); None: as in ``run``.
        max_steps: steps of these runs; None: as in ``run``.
        data: keys of the run's ``data`` with other values, such as ``{single_object_steps: 0}``.
    """

    description: str
    model_name_or_path: str
    t2i_batch_size: int | None = None
    mmu_batch_size: int | None = None
    max_steps: int | None = None
    data: dict[str, int | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bounds.at_least(0, self, "t2i_batch_size", "mmu_batch_size", "max_steps")

    @classmethod
    def migrate_keys(cls, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """``values`` with the key of version 0.1 moved into ``data``, and what it is called now."""
        return _into_data(values, "simple_steps", "single_object_steps", None)


@dataclass(frozen=True)
class Rate:
    """A point of the learning-rate grid that every variant is run at.

    Attributes:
        factor: factor on every learning rate.
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
        description: one sentence for the report; names what is ours and not from a paper.
        structure, stages, objective: see ``RunConfig``.
        tasks: "both", or the only task that the variant trains.
        data: keys of the run's ``data`` with other values, such as ``{router_aux_samples: 6}``.
        max_steps: steps of this variant; None: as in the scenario. Another number needs ``other_budget``.
        other_budget: reason why this variant has other steps or samples than the control; the report prints it. Without a reason
            a grid of unequal budgets is refused.
        scenarios: scenarios that the variant runs in; empty: all.
        rates: learning-rate points that the variant runs at; empty: all.
        axis: what separates the tasks; the report groups variants by it. A control has none.
        merge: merge the models of other variants instead of training; then leave out everything about training.
        start_from: name of a variant of the same grid, whose model of the same scenario, rate and seed this one starts from, in
            place of the scenario's base. Its budget includes that variant's.
        title: name in the report; "": the variant's name without underscores.
    """

    description: str
    structure: Structure = field(default_factory=Dense)
    stages: tuple[Stage, ...] = (Stage(),)
    objective: Objective = field(default_factory=Objective)
    tasks: Literal["both", "mmu", "t2i"] = "both"
    data: dict[str, int | float] = field(default_factory=dict)
    max_steps: int | None = None
    other_budget: str = ""
    scenarios: tuple[str, ...] = ()
    rates: tuple[str, ...] = ()
    axis: Axis | None = None
    merge: Merge | None = None
    start_from: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        bounds.at_least(0, self, "max_steps")

    @classmethod
    def migrate_keys(cls, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """``values`` with the key of version 0.1 moved into ``data``, and what it is called now."""
        return _into_data(values, "router_pairs", "router_aux_samples", 0)

    @property
    def is_dense(self) -> bool:
        """Whether it changes nothing of the base but its weights: no structure, no LoRA."""
        changed = self.start_from or any(stage.lora or stage.structure for stage in self.stages)
        return self.structure == Dense() and not changed

    @property
    def parents(self) -> tuple[str, ...]:
        """Names of the variants whose models this one is made of or starts from."""
        return self.merge.of if self.merge else (self.start_from,) if self.start_from else ()


def _into_data(values: Mapping[str, Any], old: str, new: str, unset: object) -> tuple[dict[str, Any], dict[str, str]]:
    kept = {key: value for key, value in values.items() if key != old}
    data = kept.get("data", {})
    if old not in values or (values[old] == unset and new not in data):
        return kept, {}
    kept["data"] = {**data, new: values[old]}
    return kept, {old: f"data.{new}"}


@dataclass(frozen=True)
class Comparison:
    """The whole grid.

    Where a scenario has data of one task, the variant that trains this task alone is the control: there the two are one.

    Attributes:
        name: name of the grid; its results go to ``runs/<name>`` unless ``--output`` names another folder.
        scenarios: name -> base and data.
        variants: name -> way to train.
        seeds: seeds that every variant runs with.
        rates: name -> point of the learning-rate grid; "" are the rates in the recipes.
        run: settings of all runs: data, steps, evaluation.
        control: the variant that others are compared with; by default the first dense one that trains both tasks.
        focus: the variant that the report's summary is about; by default the first other one that trains both tasks.
        metrics: shown metrics, such as "pope" for a benchmark's headline metric or "geneval/counting"; by default the headline
            metrics of all benchmarks that runs are scored by.
        claims: claims of papers; the report gives a verdict on each.
        notes: sentences for the report's section on how to read it.
    """

    name: str
    scenarios: dict[str, Scenario]
    variants: dict[str, Variant]
    seeds: tuple[int, ...] = (0,)
    rates: dict[str, Rate] = field(default_factory=lambda: {"": Rate()})
    run: RunConfig = field(default_factory=RunConfig)
    control: str = ""
    focus: str = ""
    metrics: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
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

    @property
    def control_name(self) -> str:
        """The control, chosen where the recipe names none: dense, both tasks, without LoRA; else the first of both tasks."""
        joint = [name for name, variant in self.variants.items() if variant.tasks == "both" and not variant.parents]
        dense = [name for name in joint if self.variants[name].is_dense]
        return self.control or next(iter(dense + joint), "")

    @property
    def focus_name(self) -> str:
        """The focus, chosen where the recipe names none."""
        joint = (name for name, variant in self.variants.items() if variant.tasks == "both" and name != self.control_name)
        return self.focus or next(joint, "")

    def single_task(self, task: Task) -> str:
        """The first variant that trains ``task`` alone, from the base; "" if no variant does."""
        alone = (name for name, variant in self.variants.items() if variant.tasks == task.key and not variant.parents)
        return next(alone, "")

    def batch_size(self, scenario: str, task: Task) -> int:
        """Samples of ``task`` per step that a variant of both tasks sees in ``scenario``."""
        own: int | None = getattr(self.scenarios[scenario], f"{task.key}_batch_size")
        return self.run.data.batch_size(task) if own is None else own

    def points(self, scenario: str, name: str) -> list[str]:
        """Rates that variant ``name`` is run at in ``scenario``.

        None where it has no data; a variant with parents has those that all of them have.
        """
        variant = self.variants[name]
        if variant.scenarios and scenario not in variant.scenarios:
            return []
        if variant.tasks != "both" and not self.batch_size(scenario, Task[variant.tasks.upper()]):
            return []
        known = [rate for rate in self.rates if not variant.rates or rate in variant.rates]
        parents = [self.points(scenario, parent) for parent in variant.parents]
        return [rate for rate in known if all(rate in theirs for theirs in parents)]
