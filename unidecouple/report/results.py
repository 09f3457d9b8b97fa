"""``results.json`` as typed rows, and what a report asks of them: scores by seed, means with intervals, paired differences."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from unidecouple.batch import TASK_KEYS
from unidecouple.eval.benchmark import Metric
from unidecouple.eval.suite import headlines
from unidecouple.figures.estimates import SeedEstimate, difference, estimate
from unidecouple.files import read_text

RESULTS, COMPRESSED = "results.json", "results.json.gz"
START = "start"
"""Variant name of a base before training."""

AXES = ("structure", "objective", "gradient", "schedule", "merging")
"""Where methods separate the tasks; variants are grouped by it."""

BOTH = "both"
"""What ``Results.trains`` gives for a variant of both tasks."""

_AT = "@"
_RATES = {"lr": "rate", "und": "understanding"}


@dataclass(frozen=True)
class ScoreRow:
    """One score; ``value``, ``ceiling`` and ``floor`` as the benchmark gives them (shares in [0, 1], or counts)."""

    scenario: str
    variant: str
    seed: int
    step: int
    benchmark: str
    metric: str
    value: float
    judge: str | None
    ceiling: float | None
    floor: float | None


@dataclass(frozen=True)
class RunRef:
    """A run and the folder that it wrote its logs to."""

    scenario: str
    variant: str
    seed: int
    folder: Path


def split_rate(variant: str) -> tuple[str, str]:
    """Name and point of the learning-rate grid: ("dense_joint", "lr=0.3") of "dense_joint@lr=0.3", "" at its own rates."""
    name, _, rate = variant.partition(_AT)
    return name, rate


def rate_name(rate: str) -> str:
    """A point of the learning-rate grid: "rate × 0.3" for "lr=0.3", "understanding × 0.1" for "und=0.1"; others stay."""
    kind, _, factor = (rate or "lr=1").partition("=")
    return f"{_RATES[kind]} \u00d7 {factor}" if kind in _RATES else rate


@dataclass(frozen=True)
class Results:
    """Everything ``results.json`` holds; scenarios and variants in the order of the page."""

    folder: Path
    meta: Mapping[str, Any]
    rows: tuple[ScoreRow, ...]
    runs: tuple[RunRef, ...]

    @cached_property
    def scenarios(self) -> tuple[str, ...]:
        """In order of first appearance."""
        return tuple(dict.fromkeys(row.scenario for row in self.rows))

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """Metrics that the page shows, by ``Metric.rank``: those that the recipe names, else the headlines of each benchmark.

        Metrics without a row are left out; a recipe that names only such metrics gets the headlines.
        """
        there = {(row.benchmark, row.metric) for row in self.rows}
        named = [Metric(**entry) for entry in self.meta.get("metrics", ())]
        known = [metric for metric in named if (metric.benchmark, metric.metric) in there]
        known = known or [metric for metric in headlines() if (metric.benchmark, metric.metric) in there]
        return tuple(sorted(known, key=lambda metric: metric.rank))

    def metrics_of(self, task: str) -> tuple[Metric, ...]:
        """Those of ``metrics`` that score the task with key ``task``."""
        return tuple(metric for metric in self.metrics if metric.task == task)

    @cached_property
    def _config(self) -> Mapping[str, Any]:
        return self.meta.get("config") or {}

    @cached_property
    def _grid(self) -> tuple[str, ...]:
        """Variant names without the start, in the order of the recipe, else of the rows."""
        names = self._config.get("variants") or dict.fromkeys(split_rate(row.variant)[0] for row in self.rows)
        return tuple(name for name in names if name != START)

    def trains(self, name: str) -> str:
        """Key of the only task that variant ``name`` trains, or ``BOTH``."""
        given = self.meta.get("tasks") or {}
        return given.get(name) or self._config.get("variants", {}).get(name, {}).get("tasks", BOTH)

    def single_task(self, task: str) -> str | None:
        """The variant that trains the task with key ``task`` alone; the first if there are several."""
        return next((name for name in self._grid if self.trains(name) == task), None)

    @cached_property
    def control(self) -> str | None:
        """The variant that others are compared with: the recipe's, else the first that trains both tasks."""
        return self.meta.get("control") or next((name for name in self._grid if self.trains(name) == BOTH), None)

    @cached_property
    def focus(self) -> str | None:
        """The variant that the answer is about: the recipe's, else the first after the control that trains both tasks."""
        others = (name for name in self._grid if name != self.control and self.trains(name) == BOTH)
        return self.meta.get("focus") or next(others, None)

    def role(self, name: str) -> str:
        """Return "start", "control", "focus", the key of the only task that ``name`` trains, or ""."""
        roles = {self.single_task(task): task for task in TASK_KEYS} | {self.focus: "focus", self.control: "control", START: START}
        return roles.get(name, "")

    def scenario_tasks(self, scenario: str) -> tuple[str, ...]:
        """Keys of the tasks that ``scenario`` has training data of; all where the results do not record it."""
        run = self._config.get("run", {})
        shared = run.get("files") or run.get("data") or {}
        own = {name: size for name, size in self._config.get("scenarios", {}).get(scenario, {}).items() if size is not None}
        return tuple(task for task in TASK_KEYS if ({**shared, **own}).get(f"{task}_batch_size") != 0)

    def variants(self, scenario: str) -> tuple[str, ...]:
        """The start, single tasks, the control, the others by axis as they came, the focus last; each by its rates as they came."""
        names = dict.fromkeys(row.variant for row in self.rows if row.scenario == scenario)
        first = (START, *(self.single_task(task) for task in reversed(TASK_KEYS)), self.control)
        rank = {name: position for position, name in enumerate(dict.fromkeys((*first, *(split_rate(n)[0] for n in names))))}
        rank[self.focus] = len(rank)
        return tuple(sorted(names, key=lambda name: (self.axis_rank(split_rate(name)[0]), rank[split_rate(name)[0]])))

    def trained(self, scenario: str) -> tuple[str, ...]:
        """Variants without the start and without those at another learning rate than their own."""
        return tuple(name for name in self.variants(scenario) if name != START and _AT not in name)

    def axis_rank(self, name: str) -> int:
        """Place of the group of variant ``name``: 0 without an axis, then in the order of ``AXES``."""
        axis = self.meta.get("axes", {}).get(name)
        return AXES.index(axis) + 1 if axis else 0

    def leading(self, scenario: str) -> tuple[str, ...]:
        """Each variant at its own rate, or, where it was not run at that, at the first that it was run at."""
        seen: dict[str, str] = {}
        for variant in self.variants(scenario):
            name, rate = split_rate(variant)
            if name not in seen or not rate:
                seen[name] = variant
        return tuple(variant for variant in self.variants(scenario) if seen[split_rate(variant)[0]] == variant)

    def rates_tried(self, scenario: str, name: str) -> int:
        """Learning rates that variant ``name`` was run at; points of the grid that come to one run count once."""
        runs = [run for run in self.runs if run.scenario == scenario and split_rate(run.variant)[0] == name]
        return len({run.folder for run in runs if run.seed == runs[0].seed})

    @cached_property
    def num_runs(self) -> int:
        """Finished training runs, of all scenarios; scoring the start is none."""
        return sum(run.variant != START for run in self.runs)

    def groups(self, scenario: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """(axis, names of its variants without rates), the start left out; one group "" where no variant has an axis."""
        names = dict.fromkeys(split_rate(variant)[0] for variant in self.variants(scenario) if variant != START)
        found: dict[str, list[str]] = {}
        for name in names:
            found.setdefault(("", *AXES)[self.axis_rank(name)], []).append(name)
        return tuple((axis, tuple(of)) for axis, of in found.items())

    def title(self, variant: str) -> str:
        """As "dense joint, rate × 0.3" for "dense_joint@lr=0.3": the title in the recipe, else the name without underscores."""
        name, rate = split_rate(variant)
        words = self.meta.get("titles", {}).get(name) or name.replace("_", " ")
        return f"{words}, {rate_name(rate)}" if rate else words

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every variant of the comparison once, learning rates left out."""
        return tuple(dict.fromkeys(split_rate(name)[0] for scenario in self.scenarios for name in self.variants(scenario)))

    @cached_property
    def _final(self) -> dict[tuple[str, str, str, str], dict[int, ScoreRow]]:
        found: dict[tuple[str, str, str, str], dict[int, ScoreRow]] = {}
        for row in sorted(self.rows, key=lambda row: row.step):
            found.setdefault((row.scenario, row.variant, row.benchmark, row.metric), {})[row.seed] = row
        return found

    def final_rows(self, scenario: str, variant: str, metric: Metric) -> dict[int, ScoreRow]:
        """Seed -> row of its last step."""
        return self._final.get((scenario, variant, metric.benchmark, metric.metric), {})

    def final(self, scenario: str, variant: str, metric: Metric) -> dict[int, float]:
        """Seed -> score at its last step."""
        return {seed: row.value for seed, row in self.final_rows(scenario, variant, metric).items()}

    def at(self, scenario: str, variant: str, metric: Metric, step: int | None) -> dict[int, float]:
        """Seed -> score at ``step``, or, with None, at its last."""
        if step is None:
            return self.final(scenario, variant, metric)
        wanted = (scenario, variant, step, metric.benchmark, metric.metric)
        return {r.seed: r.value for r in self.rows if (r.scenario, r.variant, r.step, r.benchmark, r.metric) == wanted}

    def start(self, scenario: str, metric: Metric) -> float | None:
        """Score of the base before training; None if it was not measured."""
        values = list(self.final(scenario, START, metric).values())
        return values[0] if values else None

    def change(self, scenario: str, variant: str, metric: Metric) -> SeedEstimate | None:
        """Score after training minus the base's; None where either is missing. All seeds share one base."""
        begin, end = self.start(scenario, metric), self.final(scenario, variant, metric)
        return estimate([value - begin for value in end.values()]) if end and begin is not None else None

    def reference(self, scenario: str, variant: str = "") -> str | None:
        """The control of ``variant``: the grid's at the same rate; None if it was not run.

        In a scenario with data of one task, the variant of that task alone may stand in for it: the two are the same there.
        """
        suffix = variant[len(split_rate(variant)[0]) :]
        tasks = self.scenario_tasks(scenario)
        controls = [self.control, *([self.single_task(tasks[0])] if len(tasks) == 1 else [])]
        known = self.variants(scenario)
        return next((name + suffix for name in controls if name is not None and name + suffix in known), None)

    def delta(self, scenario: str, variant: str, metric: Metric) -> SeedEstimate | None:
        """``variant`` minus its control, paired by seed; None without a control, of the start, and of what is the control's run."""
        control = self.reference(scenario, variant)
        if control is None or variant in (control, START) or self._folders(scenario, variant) == self._folders(scenario, control):
            return None
        return difference(self.final(scenario, variant, metric), self.final(scenario, control, metric))

    def _folders(self, scenario: str, variant: str) -> set[Path]:
        return {run.folder for run in self.runs if (run.scenario, run.variant) == (scenario, variant)}


def results_file(folder: Path) -> Path:
    """Return the results of the comparison in ``folder``: ``results.json``, or its compressed form where only that is there."""
    packed = folder / COMPRESSED
    return packed if packed.is_file() and not (folder / RESULTS).is_file() else folder / RESULTS


def load_results(folder: Path) -> Results:
    """Read ``folder/results.json``, or ``results.json.gz`` where only that is there.

    Raises:
        ValueError: it is missing, no JSON, or lacks a part that the page needs; the message names it.
    """
    path = results_file(folder)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give the folder of a comparison that has finished")
    try:
        content = json.loads(read_text(path))
        rows = tuple(_row(row) for row in content["rows"] if row["value"] is not None)
        runs = tuple(
            RunRef(run["scenario"], run["variant"], run["seed"], folder / run["folder"]) for run in content["meta"]["runs"]
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}); run the comparison again, its finished runs are kept") from error
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}; run the comparison again, its finished runs are kept") from error
    if not rows:
        raise ValueError(f"{path} holds no scores; let at least one run of the comparison finish")
    return Results(folder, content["meta"], rows, runs)


def _row(row: Mapping[str, Any]) -> ScoreRow:
    return ScoreRow(**{field.name: row[field.name] for field in fields(ScoreRow)})
