"""The answer in sentences, computed from the scores: what was lost, what was reached, and what the seeds cannot tell."""

from __future__ import annotations

from unidecouple.report.fronts import front_sentences, leaders_sentence
from unidecouple.report.results import GENEVAL, MAIN, POPE, UNIDECOUPLE, Estimate, Results
from unidecouple.report.significance import found_sentence
from unidecouple.report.wording import counted, listed, opening, points, signed, spread

FOLLOWS_PROMPTS = 0.1
"""A GenEval score below this is no base for a ratio."""


def answer(results: Results, scenario: str) -> list[str]:
    """Sentences on ``scenario``, the most important first; at least one.

    The control is ``Results.reference``; differences are paired by seed and in points of per cent.
    """
    control = results.reference(scenario)
    said = [_kept(results, scenario, control), _compared(results, scenario, control), *front_sentences(results, scenario)]
    said += [found_sentence(results, scenario), leaders_sentence(results, scenario)]
    sentences = [sentence for sentence in said if sentence]
    return sentences or [f"{opening(scenario)}: no run of UniDecouple or of its dense control has a score yet."]


def _kept(results: Results, scenario: str, control: str | None) -> str:
    """What each of the two lost of understanding, and how far generation came."""
    shown = [(name, variant) for name, variant in (("the dense model", control), ("UniDecouple", UNIDECOUPLE)) if variant]
    changes = [(name, change) for name, variant in shown if (change := results.change(scenario, variant, POPE))]
    if not changes:
        return _levels(results, scenario)
    clauses = [f"{name} {_verb(change)} {points(change.mean)}{spread(change)} points of POPE" for name, change in changes]
    if len(changes) == 2 and _verb(changes[0][1]) == _verb(changes[1][1]):
        clauses[1] = f"{changes[1][0]} {points(changes[1][1].mean)}{spread(changes[1][1])}"
    return f"{opening(scenario)}, {listed(clauses)}{_reached(results, scenario, control)}."


def _levels(results: Results, scenario: str) -> str:
    """The scores themselves, where no start was measured to compare with."""
    scores = [f"{points(sum(v.values()) / len(v))} of {m.label}" for m in MAIN if (v := results.final(scenario, UNIDECOUPLE, m))]
    return f"{opening(scenario)}, UniDecouple scores {listed(scores)}; the start was not measured." if scores else ""


def _reached(results: Results, scenario: str, control: str | None) -> str:
    """UniDecouple's GenEval score as a share of the control's: a ratio of means over the seeds that both have."""
    if control is None:
        return ""
    ours, theirs = results.final(scenario, UNIDECOUPLE, GENEVAL), results.final(scenario, control, GENEVAL)
    seeds = ours.keys() & theirs.keys()
    if not seeds:
        return ""
    us, them = (sum(scores[seed] for seed in seeds) / len(seeds) for scores in (ours, theirs))
    if them < FOLLOWS_PROMPTS:
        unread = "; neither follows prompts yet" if us < FOLLOWS_PROMPTS else ""
        return f", while the dense model's GenEval score is {points(them)} and UniDecouple's {points(us)}{unread}"
    return f", while UniDecouple reached {100 * us / them:.0f}% of the dense model's GenEval score ({points(us)} of {points(them)})"


def _verb(change: Estimate) -> str:
    return "gained" if signed(change.mean).startswith("+") else "lost"


def _compared(results: Results, scenario: str, control: str | None) -> str:
    """UniDecouple minus its control in every main score, and which of these the seeds tell from chance."""
    deltas = {m.label: delta for m in MAIN if (delta := results.delta(scenario, UNIDECOUPLE, m))}
    if not deltas or control is None:
        return ""
    numbers = listed([f"{label} {signed(delta.mean)}{spread(delta)}" for label, delta in deltas.items()])
    pairs = min(delta.count for delta in deltas.values())
    lead = "UniDecouple minus the dense model"
    if pairs == 1:
        return f"{lead}, in points: {numbers}. There is one seed only, so no interval exists and any of these may be chance."
    return f"{lead}, in points, paired by seed: {numbers} (95% intervals, {counted(pairs, 'seed')}): {_verdict(deltas)}."


def _verdict(deltas: dict[str, Estimate]) -> str:
    ahead = [label for label, delta in deltas.items() if delta.is_shown and delta.mean > 0]
    behind = [label for label, delta in deltas.items() if delta.is_shown and delta.mean < 0]
    open_ = [label for label in deltas if label not in ahead + behind]
    said = [f"ahead in {listed(ahead)}"] * bool(ahead) + [f"behind in {listed(behind)}"] * bool(behind)
    return "; ".join(said + [f"no difference that these seeds can show in {listed(open_)}"] * bool(open_))
