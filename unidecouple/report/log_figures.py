"""Gathers the logs of a scenario's runs into figures, with a plain sentence for whatever is missing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unidecouple.diagnose.gradient_conflict import color_limit, conflict_map, conflict_of
from unidecouple.diagnose.routing import draw_routing, routing_of
from unidecouple.diagnose.routing_history import routing_history
from unidecouple.figures.style import Plot, VariantStyle
from unidecouple.figures.wording import counted, listed
from unidecouple.report import logs
from unidecouple.report.figures import Records, forgetting, loss_curves
from unidecouple.report.figures_front import front
from unidecouple.report.fronts import front_names
from unidecouple.report.results import Results, RunRef, split_rate
from unidecouple.report.transfer import transfer_map, transfer_matrix


@dataclass(frozen=True)
class FigureGroup:
    """Figures of one kind in one scenario, as (heading or "", figure), and sentences on what is missing."""

    plots: tuple[tuple[str, Plot], ...]
    missing: tuple[str, ...]


def losses(results: Results, scenario: str, look: Mapping[str, VariantStyle]) -> FigureGroup:
    """Loss curves."""
    return _curves(results, scenario, look, logs.METRICS, loss_curves, "loss curve")


def scores(results: Results, scenario: str, look: Mapping[str, VariantStyle]) -> FigureGroup:
    """Validation scores over steps."""
    return _curves(results, scenario, look, logs.SCORES, forgetting, "curve of scores")


def transfers(results: Results, scenario: str) -> FigureGroup:
    """Transfer and forgetting matrix."""
    plot = transfer_map(_name("transfer", scenario), scenario, transfer_matrix(results, scenario), results.title)
    return (
        FigureGroup((("", plot),), ())
        if plot
        else FigureGroup((), (f"{scenario} has neither a start nor a run on one task alone.",))
    )


def conflicts(results: Results, scenario: str) -> FigureGroup:
    """Conflict maps at the start of training and at its end, of every variant that measured them."""
    measured = {
        (variant, file): found
        for variant in results.trained(scenario)
        for file in (logs.CONFLICT_START, logs.CONFLICT)
        if (found := [c for run in _runs(results, scenario, variant) if (c := logs.read_measured(run.folder / file, conflict_of))])
    }
    limit = color_limit([log for found in measured.values() for log in found])
    plots = []
    for (variant, _), found in measured.items():
        same = [log for log in found if log.step == found[0].step]
        heading = f"{results.title(variant)} at step {same[0].step}, {counted(len(same), 'seed')}"
        plot = conflict_map(_name("conflict", scenario, variant, str(same[0].step)), heading, same, limit)
        plots += [(heading, plot)] if plot else []
    missing = () if plots else (f"No run of {scenario} has {logs.CONFLICT}, so there is no map of it.",)
    return FigureGroup(tuple(plots), missing)


def routings(results: Results, scenario: str, look: Mapping[str, VariantStyle]) -> FigureGroup:
    """Routing maps; of one seed each, since experts of different seeds have nothing to do with each other."""
    plots = []
    for variant in results.trained(scenario):
        for run in _runs(results, scenario, variant):
            layers = logs.read_measured(run.folder / logs.ROUTING, routing_of)
            heading = f"{results.title(variant)}, seed {run.seed}"
            plot = draw_routing(_name("routing", scenario, variant), heading, layers, look[variant]) if layers else None
            if plot:
                plots.append((heading, plot))
                records = logs.read_lines(run.folder / logs.ROUTING_LOG) or []
                over_steps = routing_history(_name("routing-log", scenario, variant), heading, records)
                plots += [(f"{heading}, over steps", over_steps)] if over_steps else []
                break
    missing = () if plots else (f"No run of {scenario} has {logs.ROUTING}: only models with experts write it.",)
    return FigureGroup(tuple(plots), missing)


def fronts(results: Results, scenario: str, look: Mapping[str, VariantStyle]) -> FigureGroup:
    """Understanding against generation, one figure per group of variants; none without several rates or several groups."""
    groups = results.groups(scenario)
    if len(groups) == 1 and not front_names(results, scenario):
        return FigureGroup((), ())
    plots = []
    for axis, names in groups:
        beside = split_rate(results.reference(scenario) or "")[0]
        shown = [name for name in dict.fromkeys((beside, *names)) if name in results.names]
        plot = front(results, scenario, shown, look, _name("front", scenario, *([axis] if axis else [])))
        plots += [(_heading(axis, results, scenario), plot)] if plot else []
    return FigureGroup(tuple(plots), ())


def _heading(axis: str, results: Results, scenario: str) -> str:
    """What stands above a group's figure; nothing where there is one group only."""
    return (axis or "controls").capitalize() if len(results.groups(scenario)) > 1 else ""


def _name(*words: str) -> str:
    """A name for a figure's ids, which may hold no spaces."""
    return re.sub(r"[^\w-]+", "-", "-".join(words))


def _runs(results: Results, scenario: str, variant: str) -> list[RunRef]:
    return [run for run in results.runs if (run.scenario, run.variant) == (scenario, variant)]


def _curves(
    results: Results,
    scenario: str,
    look: Mapping[str, VariantStyle],
    file: str,
    draw: Callable[[str, str, Records, Mapping[str, VariantStyle]], Plot | None],
    noun: str,
) -> FigureGroup:
    records: dict[str, Sequence[Sequence[Mapping[str, Any]]]] = {}
    absent = []
    for variant in results.trained(scenario):
        read = [(run, logs.read_lines(run.folder / file)) for run in _runs(results, scenario, variant)]
        absent += [f"{results.title(variant)} (seed {run.seed})" for run, lines in read if not lines]
        if found := [lines for _, lines in read if lines]:
            records[variant] = found
    plots: list[tuple[str, Plot]] = []
    for axis, names in results.groups(scenario):
        beside = [results.reference(scenario), *names]  # the control goes with every group
        drawn = {name: records[name] for name in records if name in beside}
        plot = draw(_name(scenario, axis) if axis else scenario, scenario, drawn, look) if set(names) & set(drawn) else None
        plots += [(_heading(axis, results, scenario), plot)] if plot else []
    if not plots:
        return FigureGroup((), (f"No {noun}: no run of {scenario} has {file} with such a value.",))
    return FigureGroup(tuple(plots), (f"Without {listed(absent)}: {file} is missing there.",) if absent else ())
