"""The first screen: what was compared, what it did to each task and to language, whether that is significant, what next."""

from __future__ import annotations

from unidecouple.batch import LANGUAGE, Task
from unidecouple.eval.benchmark import Metric
from unidecouple.figures.estimates import SeedEstimate
from unidecouple.figures.wording import TASK_NAMES, counted, level, listed, signed, size, spread, unit_words
from unidecouple.report.fronts import front_names, front_sentences, leaders_sentence
from unidecouple.report.results import START, Results
from unidecouple.report.significance import FEWEST_SEEDS, found_sentence

FOLLOWS_PROMPTS = 0.1
"""A generation score below this share is no base for a ratio."""
MOST_SEEDS = 20
"""More seeds than these are not suggested."""

SummaryLines = list[tuple[str, str]]
"""(question, sentence) pairs."""


def answer(results: Results, scenario: str) -> SummaryLines:
    """Answers on ``scenario`` in the order in which a reader asks; at least one.

    They compare the focus of the grid with ``Results.reference``; differences are paired by seed.
    """
    control, focus = results.reference(scenario), results.focus
    understood, language = (_kept(results, scenario, control, focus, task) for task in (Task.MMU.key, LANGUAGE))
    generated = _reached(results, scenario, control, focus)
    if not understood and not language and not generated:
        understood = _levels(results, scenario, focus)
    measured = [
        ("Understanding", understood),
        ("Language", "" if language == understood else language),
        ("Generation", generated),
        ("Significant?", _compared(results, scenario, control, focus)),
        ("Significant?", found_sentence(results, scenario)),
        *(("Over learning rates", sentence) for sentence in front_sentences(results, scenario)),
        ("Over learning rates", leaders_sentence(results, scenario)),
    ]
    found = [(question, sentence) for question, sentence in measured if sentence]
    if not found:
        names = [results.title(name) for name in (focus, results.control) if name]
        return [("Compared", f"In {scenario}: no run of {' or of '.join(names) or 'any variant'} has a score yet.")]
    return [("Compared", _who(results, scenario, control, focus)), *found, ("Next", _next(results, scenario, control, focus))]


def _who(results: Results, scenario: str, control: str | None, focus: str | None) -> str:
    """Which variants of the scenario were compared, over how many seeds."""
    names = dict.fromkeys(name for _, group in results.groups(scenario) for name in group)
    main = [name for name in (focus, control) if name in names]
    others = len(names) - len(main)
    words = " against ".join(results.title(name) for name in main) or counted(others, "variant")
    words += f", beside {counted(others, 'other variant')}" if main and others else ""
    seeds = {row.seed for row in results.rows if row.scenario == scenario and row.variant != START}
    return f"{words}, {counted(len(seeds), 'seed')}."


def _next(results: Results, scenario: str, control: str | None, focus: str | None) -> str:
    """What would make the answer firmer, the most useful step first."""
    if results.meta.get("missing"):
        return "Run the same command again: it runs what is missing."
    if control is None or focus is None or focus not in results.variants(scenario):
        return "Add a control that trains both tasks, and compare with it on the same seeds."
    deltas = {metric: delta for metric in results.metrics if (delta := results.delta(scenario, focus, metric))}
    pairs = min((delta.count for delta in deltas.values()), default=0)
    if pairs < FEWEST_SEEDS:
        return f"Run at least {FEWEST_SEEDS} seeds: fewer give no verdict."
    unshown = {m.title: d.seeds_to_show(MOST_SEEDS) for m, d in deltas.items() if not d.is_shown}
    seeds = {title: number for title, number in unshown.items() if number}
    behind = [TASK_NAMES[m.task] for m, d in deltas.items() if d.is_shown and m.gain(d.mean) < 0 and m.task]
    if behind:
        task = listed(list(dict.fromkeys(behind)))
        return f"{results.title(focus)} is behind in {task}: see the losses and scores over training, then vary its learning rates."
    if seeds:
        nearest = min(seeds, key=seeds.__getitem__)
        return f"Run about {seeds[nearest]} seeds: the difference in {nearest} would then be shown if mean and spread stay."
    if len(front_names(results, scenario)) < 2:
        return "Repeat it at several learning rates (rates): one rate can favour either side."
    return "Repeat it on another base or on your own data: seeds do not show whether it holds elsewhere."


def _kept(results: Results, scenario: str, control: str | None, focus: str | None, task: str) -> str:
    """What each of the two lost of the first score of understanding or of language."""
    metric = next(iter(results.metrics_of(task)), None)
    if metric is None:
        return ""
    shown = [variant for variant in (control, focus) if variant]
    changes = [(results.title(v), change) for v in shown if (change := results.change(scenario, v, metric))]
    if not changes:
        return _levels(results, scenario, focus)
    unit = f"{unit_words(metric.unit)} of {metric.title}"
    clauses = [f"{name} {_verb(metric, change)} {_size(metric, change)} {unit}" for name, change in changes]
    if len(changes) == 2 and _verb(metric, changes[0][1]) == _verb(metric, changes[1][1]):
        clauses[1] = f"{changes[1][0]} {_size(metric, changes[1][1])}"
    return f"From the start, {listed(clauses)}."


def _size(metric: Metric, change: SeedEstimate) -> str:
    return size(change.mean, metric.unit) + spread(change, metric.unit)


def _levels(results: Results, scenario: str, focus: str | None) -> str:
    """The scores themselves, where no start was measured to compare with."""
    if focus is None:
        return ""
    found = {metric: values for metric in results.metrics if (values := results.final(scenario, focus, metric))}
    scores = [f"{level(sum(v.values()) / len(v), m.unit)}{_nats(m)} of {m.title}" for m, v in found.items()]
    return f"{results.title(focus)} scores {listed(scores)}; the start was not measured." if scores else ""


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
        return f"{their_name} scored {theirs_text} and {our_name} {ours_text}{_nats(metric)} in {metric.title}{unread}."
    reached = f"{100 * us / them:.0f}% of the {metric.title} score of {their_name}"
    return f"{our_name} reached {reached} ({ours_text} of {theirs_text})."


def _nats(metric: Metric) -> str:
    return f" {unit_words(metric.unit)}" if metric.unit == "nats" else ""


def _verb(metric: Metric, change: SeedEstimate) -> str:
    return "gained" if signed(metric.gain(change.mean), metric.unit).startswith("+") else "lost"


def _compared(results: Results, scenario: str, control: str | None, focus: str | None) -> str:
    """The focus minus its control in every metric shown, and which of these are significant."""
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
