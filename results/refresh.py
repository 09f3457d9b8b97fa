"""Puts the figures of ``results/`` where documents quote them: ``python results/refresh.py [FOLDER OF A COMPARISON]``.

With a folder its results are first copied, compressed, to ``results/<name>``. A document quotes in one of two forms:

- a table below a comment that names it, ``<!-- results/field: scores, S1-r16 -->`` or ``<!-- results/field: claims -->``, is
  replaced whole;
- of a table below a line that names a folder of results and "scenario S1-r16", say, each row that begins with a variant's name in
  backticks gets that variant's figures: with a deviation where it has one.

Prose is not touched. A test fails where a table differs from the results.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from unidecouple import config
from unidecouple.compare.claim import Claim
from unidecouple.compare.plan import Comparison
from unidecouple.files import read_text, write_gzip_atomic, write_text_atomic
from unidecouple.report.claims import verdicts
from unidecouple.report.markdown import claims_table, mean_and_deviation, scores_table
from unidecouple.report.results import COMPRESSED, RESULTS, Results, load_results, results_file

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
_TABLE = r"((?:\|.*\n)+)"
_WHOLE = re.compile(r"(<!-- results/([\w-]+): (?:scores, ([\w-]+)|claims) -->\n\n)" + _TABLE)
_ROWS = re.compile(r"(^(?=.*results/([\w-]+)/)(?=.*\bscenario ([\w-]+)).*\n\n)" + _TABLE, re.MULTILINE)
_ROW = re.compile(r"^(\|[^|]*`([\w.@=-]+)`[^|]*)((?:\|[^|\n]*)+)\|$", re.MULTILINE)


def refreshed(text: str) -> str:
    """``text`` with the figures of ``results/``.

    Raises:
        ValueError: it quotes results, or a variant of them, that are not there.
    """
    text = _WHOLE.sub(lambda found: found[1] + _whole(_results(found[2]), found[3]), text)
    return _ROWS.sub(lambda found: found[1] + _ROW.sub(lambda row: row[1] + _figures(row, found[2], found[3]), found[4]), text)


def _whole(results: Results, scenario: str | None) -> str:
    return scores_table(results, scenario) if scenario else claims_table(verdicts(results))


def _figures(row: re.Match[str], name: str, scenario: str) -> str:
    results = _results(name)
    if row[3].count("|") != len(results.metrics):
        return f"{row[3]}|"  # a table of something else
    if row[2] not in results.variants(scenario):
        raise ValueError(f"{row[0]!r} is of a variant that results/{name} has not in {scenario!r}")
    shown = [mean_and_deviation(list(results.final(scenario, row[2], metric).values()), metric.unit) for metric in results.metrics]
    spread = "±" in row[3]
    return "".join(f"| {one if spread else one.partition(' ')[0]} " for one in shown) + "|"


@cache
def _results(name: str) -> Results:
    results = load_results(ROOT / "results" / name)
    recipe = ROOT / "recipes" / "compare" / f"{name}.yaml"
    return in_words_of(results, config.load(Comparison, [recipe])) if recipe.is_file() else results


def in_words_of(results: Results, grid: Comparison) -> Results:
    """``results`` with the titles of variants and the wording of claims that the recipe has today; figures stay.

    Claims match if all but their words is equal; a claim that the recipe no longer has keeps its words.
    """
    titles = {name: grid.variants[name].title for name in results.meta["titles"] if name in grid.variants}
    wording: dict[str, list[Claim]] = {}
    for claim in grid.claims:
        wording.setdefault(_compared(asdict(claim)), []).append(claim)
    claims = [dict(old) for old in results.meta["config"]["claims"]]
    for old in claims:
        if same := wording.get(_compared(old)):
            new = same.pop(0)
            old |= {"says": new.says, "settle": new.settle}
    meta = {**results.meta, "titles": {**results.meta["titles"], **titles}}
    return replace(results, meta={**meta, "config": {**results.meta["config"], "claims": claims}})


def _compared(claim: Mapping[str, Any]) -> str:
    """Everything of a claim but its words."""
    return json.dumps({name: value for name, value in claim.items() if name not in ("says", "settle")}, sort_keys=True)


def publish(folder: Path) -> None:
    """Copy the results of the comparison in ``folder`` as ``results.json.gz``, so that the repository stays small."""
    content = json.loads(read_text(results_file(folder)))
    kept = ROOT / "results" / content["meta"]["name"]
    write_gzip_atomic(kept / COMPRESSED, json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")
    (kept / RESULTS).unlink(missing_ok=True)


if __name__ == "__main__":
    for given in sys.argv[1:]:
        publish(Path(given))
    for document in DOCUMENTS:
        before = document.read_text(encoding="utf-8")
        if (after := refreshed(before)) != before:
            write_text_atomic(document, after)
            print(document.relative_to(ROOT))
