"""The answer in sentences, computed from the scores: what was lost, what was reached, and what the seeds cannot tell."""

from __future__ import annotations

from unidecouple.batch import Task
from unidecouple.eval.benchmark import Metric
from unidecouple.report.estimates import SeedEstimate
from unidecouple.report.fronts import front_sentences, leaders_sentence
from unidecouple.report.results import Results
from unidecouple.report.significance import found_sentence
from unidecouple.report.wording import counted, level, listed, signed, size, spread, unit_words

FOLLOWS_PROMPTS = 0.1
"""A generation score below this share is no base for a ratio."""


def answer(results: Results, scenario: str) -> list[str]:
    """Sentences on ``scenario``, the most important first; at least one.

    They compare the focus of the grid with ``Results.reference``; differences are paired by seed.
    """
    control, focus = results.reference(scenario), results.focus
    said = [_kept(results, scenario, control, focus), _compared(results, scenario, control, focus)]
    said += [*front_sentences(results, scenario), found_sentence(results, scenario), leaders_sentence(results, scenario)]
    sentences = [sentence for sentence in said if sentence]
    if sentences:
        return sentences
    names = [results.title(name) for name in (focus, results.control) if name]
    return [f"In {scenario}: no run of {' or of '.join(names) or 'any variant'} has a score yet."]


def _kept(results: Results, scenario: str, control: str | None, focus: str | None) -> str:
    """What each of the two lost of the first understanding score, and how far generation came."""
    metric = next(iter(results.metrics_of(Task.MMU.key)), None)
    if metric is None:
        return _levels(results, scenario, focus)
    shown = [variant for variant in (control, focus) if variant]
    changes = [(results.title(v), change) for v in shown if (change := results.change(scenario, v, metric))]
    if not changes:
        return _levels(results, scenario, focus)
    unit = f"{unit_words(metric.unit)} of {metric.title}"
    clauses = [f"{name} {_verb(metric, change)} {_size(metric, change)} {unit}" for name, change in changes]
    if len(changes) == 2 and _verb(metric, changes[0][1]) == _verb(metric, changes[1][1]):
        clauses[1] = f"{changes[1][0]} {_size(metric, changes[1][1])}"
    return f"In {scenario}, {listed(clauses)}{_reached(results, scenario, control, focus)}."


def _size(metric: Metric, change: SeedEstimate) -> str:
    return size(change.mean, metric.unit) + spread(change, metric.unit)


def _levels(results: Results, scenario: str, focus: str | None) -> str:
    """The scores themselves, where no start was measured to compare with."""
    if focus is None:
        return ""
    found = {metric: values for metric in results.metrics if (values := results.final(scenario, focus, metric))}
    scores = [f"{level(sum(v.values()) / len(v), m.unit)} of {m.title}" for m, v in found.items()]
    return f"In {scenario}, {results.title(focus)} scores {listed(scores)}; the start was not measured." if scores else ""


def _reached(results: Results, scenario: str, control: str | None, focus: str | None) -> str:
    """The first generation score of the focus as a share of the control's: a ratio of means over the seeds that both have."""
    metric = next(iter(results.metrics_of(Task.T2I.key)), None)
    if control is None or focus is None or metric is None:
        return ""
    ours, theirs = results.final(scenario, focus, metric), results.final(scenario, control, metric)
    seeds = ours.keys() & theirs.keys()
    if not seeds:
        return ""
    us, them = (sum(scores[seed] for seed in seeds) / len(seeds) for scores in (ours, theirs))
    our_name, their_name = results.title(focus), results.title(control)
    ours_text, theirs_text = level(us, metric.unit), level(them, metric.unit)
    if metric.unit != "share" or them < FOLLOWS_PROMPTS:
        unread = "; neither follows prompts yet" if metric.unit == "share" and us < FOLLOWS_PROMPTS else ""
        return f", while {their_name} scored {theirs_text} and {our_name} {ours_text} in {metric.title}{unread}"
    reached = f"{100 * us / them:.0f}% of the {metric.title} score of {their_name}"
    return f", while {our_name} reached {reached} ({ours_text} of {theirs_text})"


def _verb(metric: Metric, change: SeedEstimate) -> str:
    return "gained" if signed(metric.gain(change.mean), metric.unit).startswith("+") else "lost"


def _compared(results: Results, scenario: str, control: str | None, focus: str | None) -> str:
    """The focus minus its control in every metric shown, and which of these the seeds tell from chance."""
    if control is None or focus is None:
        return ""
    deltas = {metric: delta for metric in results.metrics if (delta := results.delta(scenario, focus, metric))}
    if not deltas:
        return ""
    numbers = listed([f"{m.title} {signed(delta.mean, m.unit)}{spread(delta, m.unit)}" for m, delta in deltas.items()])
    pairs = min(delta.count for delta in deltas.values())
    units = listed(list(dict.fromkeys(unit_words(metric.unit) for metric in deltas)))
    lead = f"{results.title(focus)} minus {results.title(control)}, in {units}"
    if pairs == 1:
        return f"{lead}: {numbers}. There is one seed only, so no interval exists and any of these may be chance."
    return f"{lead}, paired by seed: {numbers} (95% intervals, {counted(pairs, 'seed')}): {_verdict(deltas)}."


def _verdict(deltas: dict[Metric, SeedEstimate]) -> str:
    ahead = [metric.title for metric, delta in deltas.items() if delta.is_shown and metric.gain(delta.mean) > 0]
    behind = [metric.title for metric, delta in deltas.items() if delta.is_shown and metric.gain(delta.mean) < 0]
    open_ = [metric.title for metric in deltas if metric.title not in ahead + behind]
    said = [f"ahead in {listed(ahead)}"] * bool(ahead) + [f"behind in {listed(behind)}"] * bool(behind)
    return "; ".join(said + [f"no significant difference in {listed(open_)}"] * bool(open_))
