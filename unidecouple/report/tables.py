"""Tables of the page: variant by benchmark with intervals and differences, and every metric in detail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unidecouple.eval.benchmark import Metric
from unidecouple.eval.suite import headlines
from unidecouple.figures.estimates import SeedEstimate, difference, estimate
from unidecouple.figures.style import VariantStyle
from unidecouple.figures.wording import DASH, axis_name, counted, level, listed, signed, spread, unit_of, unit_words
from unidecouple.report.costs import COST_COLUMNS, CostCell, cost_cells, has_costs
from unidecouple.report.fronts import front_areas, front_axes, front_names
from unidecouple.report.results import AXES, START, Results, ScoreRow, split_rate
from unidecouple.report.significance import CorrectedDifference, compared, corrected

_COUNTS = ("unparsed",)
"""Metrics that are numbers of answers; all others are shares."""
_BLIND = "blind"
"""Ends the metric of a model that never sees the image, beside a benchmark's headline metric."""


@dataclass(frozen=True)
class Column:
    """A benchmark of the headline table and what its scores are to be held against."""

    label: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ScoreCell:
    """A cell of the headline table.

    ``verdict`` of the difference: "ahead", "behind", "open" or "" where there is none; ``percent`` is None for what is no share;
    ``holds`` if it is significant after the correction for all differences of its table; ``tests`` in words.
    """

    mean: str
    spread: str
    delta: str
    delta_spread: str
    verdict: str
    percent: float | None
    holds: bool = False
    tests: str = ""


@dataclass(frozen=True)
class VariantRow:
    """A variant of the headline table; ``scores`` in the order of the columns, None where not measured.

    ``axis`` heads the group that begins with this line, "" elsewhere; ``cost`` are its cells of costs, none where unknown.
    """

    name: str
    description: str
    color: str
    seeds: str
    scores: tuple[ScoreCell | None, ...]
    is_ours: bool
    axis: str = ""
    cost: tuple[CostCell, ...] = ()


@dataclass(frozen=True)
class HeadlineTable:
    """The table of one scenario; ``control`` is what differences are taken against, "" without one.

    ``others`` are the variants' lines at the further points of the learning-rate grid, each held against the control there.
    """

    columns: tuple[Column, ...]
    lines: tuple[VariantRow, ...]
    others: tuple[VariantRow, ...]
    control: str
    costs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class AreaTable:
    """Areas below fronts: ``lines`` of (variant, points of its front, one cell per column); ``control`` as in ``HeadlineTable``."""

    columns: tuple[str, ...]
    lines: tuple[tuple[str, str, tuple[ScoreCell | None, ...]], ...]
    control: str


@dataclass(frozen=True)
class DetailTable:
    """All metrics of a benchmark: (metric, cells) down, ``columns`` across: the variants, then ceiling and floor."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, tuple[str, ...]], ...]


def headline(results: Results, scenario: str, look: Mapping[str, VariantStyle]) -> HeadlineTable:
    """Means with 95% intervals over seeds, differences to the control paired by seed, and costs."""
    control, leading = results.reference(scenario), results.leading(scenario)
    columns = tuple(Column(axis_name(metric), _notes(results, scenario, metric)) for metric in results.metrics)
    return HeadlineTable(
        columns,
        _lines(results, scenario, leading, look),
        _lines(results, scenario, [variant for variant in results.variants(scenario) if variant not in leading], look),
        results.title(control) if control else "",
        COST_COLUMNS if has_costs(results, scenario) else (),
    )


def _lines(results: Results, scenario: str, variants: Sequence[str], look: Mapping[str, VariantStyle]) -> tuple[VariantRow, ...]:
    described, found = results.meta.get("variants", {}), compared(results, scenario, variants)
    lines: list[VariantRow] = []
    rank = 0
    for variant in variants:
        name, _ = split_rate(variant)
        begins = results.axis_rank(name) > rank
        rank = results.axis_rank(name)
        seeds = max((len(results.final(scenario, variant, metric)) for metric in results.metrics), default=0)
        over = "the base" if variant == START else counted(seeds, "seed")
        tried = results.rates_tried(scenario, name)
        lines.append(
            VariantRow(
                results.title(variant),
                described.get(name) or described.get(variant, ""),
                look[name].color,
                f"{over}, {counted(tried, 'rate')}" if tried > 1 else over,
                tuple(_score(results, scenario, variant, m, found.get((variant, m))) for m in results.metrics),
                name == results.focus,
                AXES[rank - 1] if begins else "",
                cost_cells(results, scenario, variant),
            )
        )
    return tuple(lines)


def _score(results: Results, scenario: str, variant: str, metric: Metric, one: CorrectedDifference | None) -> ScoreCell | None:
    values = results.final(scenario, variant, metric)
    return _cell_of(metric, list(values.values()), one) if values else None


def _cell_of(metric: Metric, values: Sequence[float], one: CorrectedDifference | None) -> ScoreCell:
    own = estimate(values)
    percent = 100 * own.mean if metric.unit == "share" else None
    text = (level(own.mean, metric.unit), spread(own, metric.unit))
    if one is None:
        return ScoreCell(*text, "", "", "", percent)
    delta = one.delta
    gap = (signed(delta.mean, metric.unit), spread(delta, metric.unit), _verdict(metric, delta))
    return ScoreCell(*text, *gap, percent, one.holds, one.tests)


def _verdict(metric: Metric, delta: SeedEstimate) -> str:
    if not delta.is_shown:
        return "open"
    return "ahead" if metric.gain(delta.mean) > 0 else "behind"


def _notes(results: Results, scenario: str, metric: Metric) -> tuple[str, ...]:
    rows = _rows(results, scenario, metric)
    judges = sorted({row.judge for row in rows if row.judge})
    notes = [f"judge: {listed(judges)}"] if judges else []
    notes += [f"ceiling {text}"] if (text := _range(metric, [row.ceiling for row in rows])) else []
    notes += [f"floor {text}"] if (text := _range(metric, [row.floor for row in rows])) else []
    blind = replace(metric, metric=f"{metric.metric}/{_BLIND}")
    notes += [f"blind {text}"] if (text := _range(blind, [row.value for row in _rows(results, scenario, blind)])) else []
    return tuple(notes)


def _rows(results: Results, scenario: str, metric: Metric) -> list[ScoreRow]:
    return [row for variant in results.variants(scenario) for row in results.final_rows(scenario, variant, metric).values()]


def _range(metric: Metric, values: Sequence[float | None]) -> str:
    """As "50.0", or as a range where rows disagree; "" where there is none."""
    texts = list(dict.fromkeys(level(value, metric.unit) for value in sorted(v for v in values if v is not None)))
    return f"{texts[0]}{DASH}{texts[-1]}" if len(texts) > 1 else "".join(texts)


def details(results: Results, scenario: str) -> tuple[DetailTable, ...]:
    """One table per benchmark with every metric in it, as means and intervals over seeds."""
    variants = results.variants(scenario)
    columns = (*map(results.title, variants), "ceiling", "floor")
    found = dict.fromkeys((row.benchmark, row.metric) for row in results.rows if row.scenario == scenario)
    lines: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for benchmark, metric in found:
        shown = Metric(benchmark, metric, metric.replace("_", " "), unit=unit_of(benchmark))
        rows = _rows(results, scenario, shown)
        if any(row.ceiling is not None and row.ceiling > 1 for row in rows):
            shown = replace(shown, unit="points")
        bounds = (_range(shown, [row.ceiling for row in rows]) or DASH, _range(shown, [row.floor for row in rows]) or DASH)
        cells = tuple(_cell(results, scenario, variant, shown) for variant in variants)
        unit = f", {unit_words(shown.unit)}" if shown.unit == "nats" else ""
        lines.setdefault(benchmark, []).append((shown.title + unit, cells + bounds))
    return tuple(DetailTable(_heading(benchmark), columns, tuple(of)) for benchmark, of in lines.items())


def _heading(benchmark: str) -> str:
    titles = [metric.title for metric in headlines() if metric.benchmark == benchmark]
    return titles[0] if len(titles) == 1 else benchmark.upper() if titles else benchmark


def _cell(results: Results, scenario: str, variant: str, metric: Metric) -> str:
    values = list(results.final(scenario, variant, metric).values())
    if not values:
        return DASH
    own = estimate(values)
    is_count = metric.metric.partition("/")[0] in _COUNTS
    return f"{own.mean:.1f}" if is_count else level(own.mean, metric.unit) + spread(own, metric.unit)


def area_table(results: Results, scenario: str) -> AreaTable | None:
    """Areas below the fronts of all variants run at several rates, and their differences to the control's front by seed.

    A front of more points than the control's is not compared, since points can only add area. None where no variant has a front,
    and where scores are no shares: an area needs a zero and a one.
    """
    names, control = front_names(results, scenario), split_rate(results.reference(scenario) or "")[0]
    drawn, kept = front_axes(results)
    kept = tuple(metric for metric in kept if metric.unit == "share")
    if len(names) < 2 or drawn is None or drawn.unit != "share" or not kept:
        return None
    keys = [(name, metric) for name in names for metric in kept]
    areas = {(name, metric): front_areas(results, scenario, name, metric) for name, metric in keys}
    tried = {name: results.rates_tried(scenario, name) for name in names}
    deltas = {
        (name, metric): delta
        for name, metric in keys
        if control in names and name != control and tried[name] <= tried[control]
        if (delta := difference(areas[name, metric], areas[control, metric])) is not None
    }
    found = corrected(deltas)
    lines = []
    for name in names:
        cells = tuple(_area(metric, areas[name, metric], found.get((name, metric))) for metric in kept)
        lines.append((results.title(name), str(tried[name]), cells))
    titles = tuple(f"{metric.title} by {drawn.title}" for metric in kept)
    return AreaTable(titles, tuple(lines), results.title(control) if control in names else "")


def _area(metric: Metric, values: Mapping[int, float], one: CorrectedDifference | None) -> ScoreCell | None:
    return _cell_of(metric, list(values.values()), one) if values else None
