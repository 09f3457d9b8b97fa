"""Claims of papers held against a comparison's scores: what each difference came to, and whether the claim holds here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unidecouple.eval.benchmark import Metric
from unidecouple.eval.suite import headlines
from unidecouple.figures.estimates import SeedEstimate, difference, estimate
from unidecouple.figures.wording import DASH, TASK_NAMES, counted, decimal, signed, spread, unit_of, unit_words
from unidecouple.report.results import START, Results
from unidecouple.report.significance import FEWEST_SEEDS, CorrectedDifference, VariantMetric, corrected

HOLDS, PARTLY, NOT_SHOWN, MIXED, AGAINST, OPPOSITE, UNTESTED, OPEN, MISSING = (
    "reproduced",
    "in part",
    "not shown",
    "both ways",
    "against, in part",
    "the opposite",
    "cannot be tested here",
    "open: too few seeds",
    "not run yet",
)

MOST_SEEDS = 100
"""More seeds than these are not suggested."""

_NAMED = {
    "interaction/correlation": "correlation of the curves",
    "interaction/from_one_task": "distance of the curves from those of one task",
    "conflict/above_floor": "cosine above its floor",
    "conflict/cosine": "cosine of the gradients",
    "loss/mmu": f"loss, {TASK_NAMES['mmu']}",
    "loss/t2i": f"loss, {TASK_NAMES['t2i']}",
    "routing/token_entropy/mmu": f"routing entropy, {TASK_NAMES['mmu']}",
}


@dataclass(frozen=True)
class Finding:
    """A difference that a claim is about: ``wanted`` is its sign; ``holds`` if it is significant after Holm's correction."""

    metric: Metric
    wanted: int
    delta: SeedEstimate
    holds: bool

    @property
    def agrees(self) -> bool:
        """Whether the interval lies on the claim's side of zero."""
        return self.delta.is_shown and self.delta.mean * self.wanted > 0

    @property
    def opposes(self) -> bool:
        """Whether it lies on the other side."""
        return self.delta.is_shown and self.delta.mean * self.wanted < 0

    @property
    def text(self) -> str:
        """As "POPE +1.2 ± 0.9", with a star if it is significant after the correction."""
        mean, unit = self.delta.mean, self.metric.unit
        number = decimal(mean, 3, plus=True) if unit == "number" else signed(mean, unit)
        words = f" {unit_words(unit)}" if unit == "nats" else ""
        return f"{self.metric.title} {number}{spread(self.delta, unit)}{words}{' *' * self.holds}"


@dataclass(frozen=True)
class ClaimResult:
    """What became of a claim in one scenario ("" where the grid cannot test it): ``verdict`` is one of the words above.

    ``settle`` is the claim's own text, or, where it has none and is not shown, how many seeds would do.
    """

    says: str
    source: str
    scenario: str
    compared: str
    findings: tuple[Finding, ...]
    seeds: str
    verdict: str
    settle: str


def verdicts(results: Results) -> tuple[ClaimResult, ...]:
    """Every claim of the grid in every scenario that it names, in the grid's order; none where the grid makes no claims."""
    claims = results.meta.get("config", {}).get("claims") or ()
    tested = {scenario: corrected(_deltas(results, scenario, claims)) for scenario in results.scenarios}
    found: list[ClaimResult] = []
    for number, claim in enumerate(claims):
        if claim.get("of") is None:
            found.append(ClaimResult(claim["says"], claim["source"], "", "", (), "", UNTESTED, claim.get("settle", "")))
            continue
        found += [_verdict(results, claim, tested[scenario], str(number), scenario) for scenario in _scenarios(results, claim)]
    return tuple(found)


def _scenarios(results: Results, claim: Mapping[str, Any]) -> list[str]:
    return [scenario for scenario in results.scenarios if not claim.get("scenarios") or scenario in claim["scenarios"]]


def _verdict(
    results: Results, claim: Mapping[str, Any], tested: Mapping[VariantMetric, CorrectedDifference], key: str, scenario: str
) -> ClaimResult:
    findings = tuple(
        Finding(metric, wanted, one.delta, one.holds)
        for metric, wanted in _wanted(claim)
        if (one := tested.get((key, metric))) is not None
    )
    against = claim.get("against")
    compared = results.title(claim["of"]) + (f" {DASH} {results.title(against)}" if against else "")
    if claim.get("step") is not None:
        compared += f", at step {claim['step']}"
    seeds = counted(min(finding.delta.count for finding in findings), "seed") if findings else ""
    whole = len(findings) == len(_wanted(claim))
    verdict = judged(findings) if whole else MISSING
    settle = claim.get("settle") or (_seeds_to_settle(findings) if verdict == NOT_SHOWN else "")
    return ClaimResult(claim["says"], claim["source"], scenario, compared, findings, seeds, verdict, settle)


def judged(findings: Sequence[Finding]) -> str:
    """The verdict on a claim whose differences all were measured (at least one).

    It is the opposite only where all of them, by their means, speak against it and one at least excludes zero.
    """
    for_it, against_it = sum(f.agrees for f in findings), sum(f.opposes for f in findings)
    if min(finding.delta.count for finding in findings) < FEWEST_SEEDS:
        return OPEN
    if against_it:
        return MIXED if for_it else OPPOSITE if all(f.delta.mean * f.wanted < 0 for f in findings) else AGAINST
    if for_it == len(findings):
        return HOLDS
    return PARTLY if for_it else NOT_SHOWN


def _seeds_to_settle(findings: Sequence[Finding]) -> str:
    """How many seeds the difference that is nearest to it would take to exclude zero, mean and spread as they are."""
    needed = {finding.metric.title: finding.delta.seeds_to_show(MOST_SEEDS) for finding in findings}
    label, seeds = min(needed.items(), key=lambda item: MOST_SEEDS + 1 if item[1] is None else item[1])
    number = f"more than {MOST_SEEDS} seeds" if seeds is None else f"about {seeds} seeds"
    return f"{number}, if the difference in {label} stays."


def _deltas(results: Results, scenario: str, claims: Sequence[Mapping[str, Any]]) -> dict[tuple[str, Metric], SeedEstimate]:
    """(number of the claim, metric) -> difference, of all claims made of ``scenario``: one family of tests."""
    found: dict[tuple[str, Metric], SeedEstimate] = {}
    for number, claim in enumerate(claims):
        if claim.get("of") is None or scenario not in _scenarios(results, claim):
            continue
        for metric, _ in _wanted(claim):
            delta = _delta(results, scenario, claim, metric)
            if delta is not None:
                found[str(number), metric] = delta
    return found


def _delta(results: Results, scenario: str, claim: Mapping[str, Any], metric: Metric) -> SeedEstimate | None:
    ours = results.at(scenario, claim["of"], metric, claim.get("step"))
    if not ours:
        return None
    if claim.get("against") is None:
        return difference(ours, dict.fromkeys(ours, 0.0))
    theirs = results.at(scenario, claim["against"], metric, claim.get("step"))
    if claim["against"] == START and theirs:  # all seeds share one base
        return estimate([value - next(iter(theirs.values())) for value in ours.values()])
    return difference(ours, theirs)


def _wanted(claim: Mapping[str, Any]) -> list[tuple[Metric, int]]:
    return [(_metric(name), sign) for key, sign in (("higher", 1), ("lower", -1)) for name in claim.get(key) or ()]


def _metric(name: str) -> Metric:
    """A benchmark's headline metric, that on validation samples ("pope/val"), or "benchmark/metric"."""
    benchmark, _, metric = name.partition("/")
    headline = next((one for one in headlines() if one.benchmark == benchmark and metric in ("", "val", one.metric)), None)
    if headline and metric == "val":
        return replace(headline, metric=f"{headline.metric}/val", title=f"{headline.title} on validation samples")
    if headline:
        return headline
    title = _NAMED.get(name, name.replace("_", " "))
    return Metric(benchmark, metric, title, unit=unit_of(benchmark))
