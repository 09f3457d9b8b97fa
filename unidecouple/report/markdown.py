"""The page's main tables as Markdown, to be quoted: scores of every variant, and what became of claims."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from unidecouple.eval.benchmark import Unit
from unidecouple.figures.wording import DASH, level
from unidecouple.report.claims import ClaimResult
from unidecouple.report.results import Results


def scores_table(results: Results, scenario: str) -> str:
    """Names as in the recipe and scores at the last step, one line per variant: mean and standard deviation over seeds."""
    shown = results.metrics
    lines = [f"| | seeds | {' | '.join(metric.title for metric in shown)} |", "|---" * (2 + len(shown)) + "|"]
    for variant in results.variants(scenario):
        found = [list(results.final(scenario, variant, metric).values()) for metric in shown]
        cells = [mean_and_deviation(values, metric.unit) for metric, values in zip(shown, found, strict=True)]
        lines.append(f"| `{variant}` | {max(map(len, found), default=0)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def mean_and_deviation(values: Sequence[float], unit: Unit = "share") -> str:
    """As ".934 ± .005", of one value without a deviation, of none a dash."""
    if not values:
        return DASH
    mean = _number(statistics.mean(values), unit)
    return f"{mean} ± {_number(statistics.stdev(values), unit)}" if len(values) > 1 else mean


def _number(value: float, unit: Unit) -> str:
    """A share as ".934" or "1.000"; others as on the page."""
    return f"{value:.3f}".removeprefix("0") if unit == "share" else level(value, unit)


def claims_table(found: Sequence[ClaimResult]) -> str:
    """The verdicts, one line per claim and scenario."""
    lines = ["| claim | source | where | difference | seeds | here |", "|---|---|---|---|---|---|"]
    for one in found:
        words = f"{one.compared}: {', '.join(finding.text for finding in one.findings)}" if one.findings else ""
        words += (" To settle it: " if words else "") + one.settle if one.settle else ""
        seeds = one.seeds.split(" ")[0]
        lines.append(f"| {one.says} | {one.source} | {one.scenario} | {words} | {seeds} | {one.verdict} |")
    return "\n".join(lines) + "\n"
