"""Puts the page together: everything computed here, everything laid out in ``template.html.j2``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from unidecouple.figures.style import GRID, INK, MUTED, PAPER, Plot, VariantStyle, variant_styles
from unidecouple.figures.wording import MINUS, counted, duration
from unidecouple.files import write_text_atomic
from unidecouple.ownership import check_file
from unidecouple.report import log_figures
from unidecouple.report.answer import answer
from unidecouple.report.claims import ClaimResult, verdicts
from unidecouple.report.costs import budget_sentences, missing_sentence
from unidecouple.report.figures import overview
from unidecouple.report.figures_forest import forest
from unidecouple.report.log_figures import FigureGroup
from unidecouple.report.markdown import claims_table, scores_table
from unidecouple.report.results import Results, load_results
from unidecouple.report.sample_grid import SampleGrid, sample_grid
from unidecouple.report.tables import AreaTable, DetailTable, HeadlineTable, area_table, details, headline

REPORT, SCORES, CLAIMS = "report.html", "scores.md", "claims.md"
_TEMPLATE = "template.html.j2"
_OURS = "<!-- unidecouple -->\n"
"""First line of Markdown files, by which a later report knows that it may replace them; see ``ownership``."""
_NUMBERS = re.compile(rf"[+{MINUS}]?\d+\.\d+(?: ± \d+\.\d+)?|\d+%(?! interval)")


@dataclass(frozen=True)
class ScenarioView:
    """What the page shows of one scenario."""

    name: str
    description: str
    answers: tuple[tuple[str, Markup], ...]
    table: HeadlineTable
    forest: Plot | None
    details: tuple[DetailTable, ...]
    samples: SampleGrid
    fronts: FigureGroup
    areas: AreaTable | None
    budgets: tuple[str, ...]
    scores: FigureGroup
    transfer: FigureGroup
    losses: FigureGroup
    conflicts: FigureGroup
    routings: FigureGroup


def write_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from ``folder/results.json`` and what the runs it names left beside their scores.

    ``folder/scores.md`` has the scores as Markdown, and, where the grid makes claims, ``folder/claims.md`` what became of them.

    Returns:
        The page's path. The page needs no other file, no network and no script.

    Raises:
        ValueError: ``results.json`` is missing or broken, or a log that is there cannot be read (missing logs are no error); or
            a file of one of these names is there that this package did not write. Then nothing is written.
        StorageError: the page could not be written; an earlier one is as it was.
    """
    results = load_results(folder)
    found = verdicts(results)
    names = (REPORT, SCORES, CLAIMS) if found else (REPORT, SCORES)
    for name in names:
        check_file(folder / name)
    tables = [f"## {scenario}\n\n{scores_table(results, scenario)}" for scenario in results.scenarios]
    texts = (render(results, found), _OURS + "\n".join(tables), _OURS + claims_table(found))
    for name, text in zip(names, texts, strict=False):
        write_text_atomic(folder / name, text)
    return folder / REPORT


def render(results: Results, claims: Sequence[ClaimResult]) -> str:
    """The page as text; ``claims`` are what became of the grid's, none for a grid that makes none."""
    look = variant_styles(results.names, results.title, results.axis_rank, results.role)
    here = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["svg"] = Markup
    return environment.get_template(_TEMPLATE).render(
        title=results.meta.get("name") or results.folder.name,
        facts=_facts(results),
        partial=missing_sentence(results),
        scenarios=[_view(results, scenario, look) for scenario in results.scenarios],
        overview=overview(results, look),
        claims=claims,
        theme={"ink": INK, "muted": MUTED, "grid": GRID, "paper": PAPER},
        command=results.meta.get("command"),
        notes=results.meta.get("notes", ()),
        control=results.title(results.control) if results.control else "",
        synthetic=results.meta.get("data", "world") == "world",
        facts_folded=_folded(results.meta),
    )


def emphasize(sentence: str) -> Markup:
    """``sentence`` escaped, its scores and percentages in bold."""
    return Markup(_NUMBERS.sub(lambda match: f"<strong>{match.group()}</strong>", str(escape(sentence))))  # noqa: S704 -- escaped above


def _view(results: Results, scenario: str, look: Mapping[str, VariantStyle]) -> ScenarioView:
    return ScenarioView(
        name=scenario,
        description=results.meta.get("scenarios", {}).get(scenario, ""),
        answers=tuple((question, emphasize(sentence)) for question, sentence in answer(results, scenario)),
        table=headline(results, scenario, look),
        forest=forest(results, scenario, look),
        details=details(results, scenario),
        samples=sample_grid(results, scenario),
        fronts=log_figures.fronts(results, scenario, look),
        areas=area_table(results, scenario),
        budgets=tuple(budget_sentences(results, scenario)),
        scores=log_figures.scores(results, scenario, look),
        transfer=log_figures.transfers(results, scenario),
        losses=log_figures.losses(results, scenario, look),
        conflicts=log_figures.conflicts(results, scenario),
        routings=log_figures.routings(results, scenario, look),
    )


def _facts(results: Results) -> list[str]:
    """The line under the title."""
    meta = results.meta
    facts = [str(meta["created"])[:10]] if meta.get("created") else []
    taken = sum("source" in run for run in meta["runs"] if run["variant"] != "start")
    facts += [
        counted(results.num_runs, "run") + (f" ({taken} taken from elsewhere)" if taken else ""),
        counted(len({row.seed for row in results.rows}), "seed"),
    ]
    times = (("wall_seconds", "wall time"), ("cpu_seconds", "CPU time"))
    facts += [f"{duration(meta[key])} of {what}" for key, what in times if meta.get(key)]
    return facts + ([f"commit {meta['commit'][:10]}"] if meta.get("commit") else [])


def _folded(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(heading, JSON) of the parts of ``meta`` that are there to look things up in."""
    names = {
        "config": "Configuration",
        "versions": "Versions",
        "hashes": "Hashes",
        "chance": "Chance levels",
        "sources": "Runs taken from elsewhere",
        "runs": "Runs",
    }
    return [(names[key], json.dumps(meta[key], indent=2, ensure_ascii=False)) for key in names if meta.get(key)]
