"""``results.json`` as typed rows, and what a report asks of them: scores by seed, means with intervals, paired differences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from unidecouple.eval.statistics import Interval, mean_interval, paired_difference, paired_t, seeds_to_exclude_zero, sign_flip
from unidecouple.files import read_text

RESULTS, COMPRESSED = "results.json", "results.json.gz"
START, DENSE_T2I, DENSE_MMU, DENSE_JOINT, MOE, UNIDECOUPLE = "start", "dense_t2i", "dense_mmu", "dense_joint", "moe", "unidecouple"
ONLY_GENERATION = "S1-r0"
"""Scenario without understanding data: training jointly and training on generation alone are the same thing there."""

AXES = ("structure", "objective", "gradient", "schedule", "merging")
"""Where methods part the tasks; variants are grouped by it."""

FEWEST_FLIPPED = 5
"""Seeds from which the permutation test is told beside Student's."""

_ORDER = (START, DENSE_T2I, DENSE_MMU, DENSE_JOINT, MOE)
_AT = "@"
_TITLES = {
    START: "start",
    DENSE_T2I: "dense, generation only",
    DENSE_MMU: "dense, understanding only",
    DENSE_JOINT: "dense joint",
    MOE: "plain MoE",
    UNIDECOUPLE: "UniDecouple",
}
_RATES = {"lr": "rate", "und": "understanding"}


@dataclass(frozen=True)
class Measure:
    """A score by its names in ``results.json``, and how the page calls it."""

    benchmark: str
    metric: str
    label: str


POPE = Measure("pope", "accuracy", "POPE")
VQA = Measure("vqa", "accuracy", "VQA")
GENEVAL = Measure("geneval", "overall", "GenEval")
MAIN = (POPE, VQA, GENEVAL)


@dataclass(frozen=True)
class Row:
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


@dataclass(frozen=True)
class Estimate:
    """Mean over ``count`` seeds and half the width of its 95% interval; None of one seed, which has no interval.

    Of a paired difference, ``p`` is Student's (None where all seeds differ by the same, which leaves no spread to judge by) and
    ``flipped`` the exact sign-flip test's, the latter from five seeds on.
    """

    mean: float
    half_width: float | None
    count: int
    p: float | None = None
    flipped: float | None = None

    @property
    def is_shown(self) -> bool:
        """Whether the interval lies on one side of zero: what the seeds can tell from chance."""
        return self.half_width is not None and abs(self.mean) > self.half_width

    def seeds_to_show(self, most: int) -> int | None:
        """At how many seeds it would be shown if mean and spread stayed; None beyond ``most``, and of one seed."""
        if self.half_width is None:
            return None
        low, high = self.mean - self.half_width, self.mean + self.half_width
        return seeds_to_exclude_zero(Interval(self.mean, low, high, 0.95, self.count), most)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean of ``values``, one a seed (at least one), with Student's t interval where there are two or more."""
    if len(values) == 1:
        return Estimate(values[0], None, 1)
    interval = mean_interval(values)
    return Estimate(interval.mean, interval.half_width, interval.count)


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
    """``ours - theirs``, paired over the seeds that both have; None if they share none."""
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) < 2:
        return estimate([ours[seed] - theirs[seed] for seed in seeds]) if seeds else None
    interval = paired_difference({seed: ours[seed] for seed in seeds}, {seed: theirs[seed] for seed in seeds})
    gaps = [ours[seed] - theirs[seed] for seed in seeds]
    flipped = sign_flip(gaps) if len(gaps) >= FEWEST_FLIPPED else None
    return Estimate(interval.mean, interval.half_width, interval.count, paired_t(gaps), flipped)


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
    rows: tuple[Row, ...]
    runs: tuple[RunRef, ...]

    @cached_property
    def scenarios(self) -> tuple[str, ...]:
        """In order of first appearance."""
        return tuple(dict.fromkeys(row.scenario for row in self.rows))

    def variants(self, scenario: str) -> tuple[str, ...]:
        """The start, the controls, then by axis as they came, and UniDecouple last; each by its rates as they came."""
        names = dict.fromkeys(row.variant for row in self.rows if row.scenario == scenario)
        rank = {name: position for position, name in enumerate(dict.fromkeys((*_ORDER, *(split_rate(n)[0] for n in names))))}
        rank[UNIDECOUPLE] = len(rank)
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

    def groups(self, scenario: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """(axis, names of its variants without rates), the start left out; one group "" where no variant has an axis."""
        names = dict.fromkeys(split_rate(variant)[0] for variant in self.variants(scenario) if variant != START)
        found: dict[str, list[str]] = {}
        for name in names:
            found.setdefault(("", *AXES)[self.axis_rank(name)], []).append(name)
        return tuple((axis, tuple(of)) for axis, of in found.items())

    def title(self, variant: str) -> str:
        """As "dense joint, rate × 0.3" for "dense_joint@lr=0.3": the grid's own title, else the name without underscores."""
        name, rate = split_rate(variant)
        words = self.meta.get("titles", {}).get(name) or _TITLES.get(name, name.replace("_", " "))
        return f"{words}, {rate_name(rate)}" if rate else words

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every variant of the comparison once, learning rates left out."""
        return tuple(dict.fromkeys(split_rate(name)[0] for scenario in self.scenarios for name in self.variants(scenario)))

    @cached_property
    def _final(self) -> dict[tuple[str, str, str, str], dict[int, Row]]:
        found: dict[tuple[str, str, str, str], dict[int, Row]] = {}
        for row in sorted(self.rows, key=lambda row: row.step):
            found.setdefault((row.scenario, row.variant, row.benchmark, row.metric), {})[row.seed] = row
        return found

    def final_rows(self, scenario: str, variant: str, measure: Measure) -> dict[int, Row]:
        """Seed -> row of its last step."""
        return self._final.get((scenario, variant, measure.benchmark, measure.metric), {})

    def final(self, scenario: str, variant: str, measure: Measure) -> dict[int, float]:
        """Seed -> score at its last step."""
        return {seed: row.value for seed, row in self.final_rows(scenario, variant, measure).items()}

    def at(self, scenario: str, variant: str, measure: Measure, step: int | None) -> dict[int, float]:
        """Seed -> score at ``step``, or, with None, at its last."""
        if step is None:
            return self.final(scenario, variant, measure)
        wanted = (scenario, variant, step, measure.benchmark, measure.metric)
        return {r.seed: r.value for r in self.rows if (r.scenario, r.variant, r.step, r.benchmark, r.metric) == wanted}

    def start(self, scenario: str, measure: Measure) -> float | None:
        """Score of the base before training; None if it was not measured."""
        values = list(self.final(scenario, START, measure).values())
        return values[0] if values else None

    def change(self, scenario: str, variant: str, measure: Measure) -> Estimate | None:
        """Score after training minus the base's; None where either is missing. All seeds share one base."""
        begin, end = self.start(scenario, measure), self.final(scenario, variant, measure)
        return estimate([value - begin for value in end.values()]) if end and begin is not None else None

    def reference(self, scenario: str, variant: str = UNIDECOUPLE) -> str | None:
        """The control of ``variant``: the grid's at the same rate (dense T2I in ``ONLY_GENERATION``); None if missing."""
        suffix = variant[len(split_rate(variant)[0]) :]
        control = self.meta.get("control", DENSE_JOINT)
        controls = (control, DENSE_T2I) if scenario == ONLY_GENERATION else (control,)
        known = self.variants(scenario)
        return next((name + suffix for name in controls if name + suffix in known), None)

    def delta(self, scenario: str, variant: str, measure: Measure) -> Estimate | None:
        """``variant`` minus its control, paired by seed; None without a control, of the start, and of what is the control's run."""
        control = self.reference(scenario, variant)
        if control is None or variant in (control, START) or self._folders(scenario, variant) == self._folders(scenario, control):
            return None
        return difference(self.final(scenario, variant, measure), self.final(scenario, control, measure))

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


def _row(row: Mapping[str, Any]) -> Row:
    return Row(**{field.name: row[field.name] for field in fields(Row)})
