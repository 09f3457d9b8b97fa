"""Tables of the page: variant by benchmark with intervals and differences, and every metric in detail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unidecouple.report.results import MAIN, POPE, START, UNIDECOUPLE, Estimate, Measure, Results, Row, estimate, split_rate
from unidecouple.report.style import Look
from unidecouple.report.wording import DASH, counted, listed, points, signed, spread, variant_name

_COUNTS = ("unparsed",)
"""Metrics that are numbers of answers; all others are shares."""
_BENCHMARKS = {"pope": "POPE", "vqa": "VQA", "geneval": "GenEval"}
_BLIND = Measure("pope", "accuracy/blind", "blind")


@dataclass(frozen=True)
class Column:
    """A benchmark of the headline table and what its scores are to be held against."""

    label: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """A cell of the headline table. ``verdict`` of the difference: "ahead", "behind", "open" or "" where there is none."""

    mean: str
    spread: str
    delta: str
    delta_spread: str
    verdict: str
    percent: float


@dataclass(frozen=True)
class Line:
    """A variant of the headline table; ``scores`` in the order of the columns, None where not measured."""

    name: str
    description: str
    color: str
    seeds: str
    scores: tuple[Score | None, ...]
    is_ours: bool


@dataclass(frozen=True)
class Headline:
    """The table of one scenario; ``control`` is what differences are taken against, "" without one."""

    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    control: str


@dataclass(frozen=True)
class Detail:
    """All metrics of a benchmark: (metric, cells) down, ``columns`` across: the variants, then ceiling and floor."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, tuple[str, ...]], ...]


def headline(results: Results, scenario: str, look: Mapping[str, Look]) -> Headline:
    """Means with 95% intervals over seeds, and differences to the control paired by seed."""
    control = results.reference(scenario)
    described = results.meta.get("variants", {})
    lines: list[Line] = []
    for variant in results.variants(scenario):
        name, _ = split_rate(variant)
        seen = {split_rate(earlier)[0] for earlier in results.variants(scenario)[: len(lines)]}
        seeds = max(len(results.final(scenario, variant, measure)) for measure in MAIN)
        lines.append(
            Line(
                variant_name(variant),
                "" if name in seen else described.get(name) or described.get(variant, ""),
                look[name].color,
                "the base" if variant == START else counted(seeds, "seed"),
                tuple(_score(results, scenario, variant, measure) for measure in MAIN),
                name == UNIDECOUPLE,
            )
        )
    columns = tuple(Column(f"{measure.label} {measure.metric}", _notes(results, scenario, measure)) for measure in MAIN)
    return Headline(columns, tuple(lines), variant_name(control) if control else "")


def _score(results: Results, scenario: str, variant: str, measure: Measure) -> Score | None:
    values = results.final(scenario, variant, measure)
    if not values:
        return None
    own, delta = estimate(list(values.values())), results.delta(scenario, variant, measure)
    if delta is None:
        return Score(points(own.mean), spread(own), "", "", "", 100 * own.mean)
    return Score(points(own.mean), spread(own), signed(delta.mean), spread(delta), _verdict(delta), 100 * own.mean)


def _verdict(delta: Estimate) -> str:
    if not delta.is_shown:
        return "open"
    return "ahead" if delta.mean > 0 else "behind"


def _notes(results: Results, scenario: str, measure: Measure) -> tuple[str, ...]:
    rows = _rows(results, scenario, measure)
    judges = sorted({row.judge for row in rows if row.judge})
    notes = [f"judge: {listed(judges)}"] if judges else []
    notes += [f"ceiling {text}"] if (text := _range([row.ceiling for row in rows])) else []
    notes += [f"floor {text}"] if (text := _range([row.floor for row in rows])) else []
    if measure == POPE:
        blind = _range([row.value for row in _rows(results, scenario, _BLIND)])
        notes += [f"blind {blind}"] if blind else []
    return tuple(notes)


def _rows(results: Results, scenario: str, measure: Measure) -> list[Row]:
    return [row for variant in results.variants(scenario) for row in results.final_rows(scenario, variant, measure).values()]


def _range(values: Sequence[float | None]) -> str:
    """As "50.0", or as a range where rows disagree; "" where there is none."""
    texts = list(dict.fromkeys(points(value) for value in sorted(v for v in values if v is not None)))
    return f"{texts[0]}{DASH}{texts[-1]}" if len(texts) > 1 else "".join(texts)


def details(results: Results, scenario: str) -> tuple[Detail, ...]:
    """One table a benchmark with every metric in it, as means and intervals over seeds."""
    variants = results.variants(scenario)
    columns = (*map(variant_name, variants), "ceiling", "floor")
    found = dict.fromkeys((row.benchmark, row.metric) for row in results.rows if row.scenario == scenario)
    lines: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for benchmark, metric in found:
        measure = Measure(benchmark, metric, metric.replace("_", " "))
        rows = _rows(results, scenario, measure)
        bounds = (_range([row.ceiling for row in rows]) or DASH, _range([row.floor for row in rows]) or DASH)
        cells = tuple(_cell(results, scenario, variant, measure) for variant in variants)
        lines.setdefault(benchmark, []).append((measure.label, cells + bounds))
    return tuple(Detail(_BENCHMARKS.get(benchmark, benchmark), columns, tuple(of)) for benchmark, of in lines.items())


def _cell(results: Results, scenario: str, variant: str, measure: Measure) -> str:
    values = list(results.final(scenario, variant, measure).values())
    if not values:
        return DASH
    own = estimate(values)
    return f"{own.mean:.1f}" if measure.metric.split("/")[0] in _COUNTS else points(own.mean) + spread(own)
