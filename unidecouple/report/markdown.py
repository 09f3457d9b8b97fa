"""The page's main tables as Markdown, to be quoted: scores of every variant, and what became of claims."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from unidecouple.report.claims import Verdict
from unidecouple.report.results import MAIN, Results
from unidecouple.report.wording import DASH


def scores_table(results: Results, scenario: str) -> str:
    """Names as in the recipe and scores at the last step, a line a variant: mean and standard deviation over seeds."""
    lines = [f"| | seeds | {' | '.join(measure.label for measure in MAIN)} |", "|---" * (2 + len(MAIN)) + "|"]
    for variant in results.variants(scenario):
        found = [list(results.final(scenario, variant, measure).values()) for measure in MAIN]
        seeds = max(map(len, found))
        lines.append(f"| `{variant}` | {seeds} | {' | '.join(map(mean_and_deviation, found))} |")
    return "\n".join(lines) + "\n"


def mean_and_deviation(values: Sequence[float]) -> str:
    """As ".934 ± .005", of one value without a deviation, of none a dash."""
    if not values:
        return DASH
    mean = share(statistics.mean(values))
    return f"{mean} ± {share(statistics.stdev(values))}" if len(values) > 1 else mean


def share(value: float) -> str:
    """As ".934", or "1.000"."""
    return f"{value:.3f}".removeprefix("0")


def claims_table(found: Sequence[Verdict]) -> str:
    """The verdicts, a line a claim and scenario."""
    lines = ["| claim | source | where | difference | seeds | here |", "|---|---|---|---|---|---|"]
    for one in found:
        told = f"{one.compared}: {', '.join(finding.told for finding in one.findings)}" if one.findings else ""
        told += (" To settle it: " if told else "") + one.settle if one.settle else ""
        seeds = one.seeds.split(" ")[0]
        lines.append(f"| {one.says} | {one.source} | {one.scenario} | {told} | {seeds} | {one.verdict} |")
    return "\n".join(lines) + "\n"
