"""Tables that documents quote are what ``results/`` says."""

from __future__ import annotations

import gzip
import json
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from results import refresh
from results.refresh import DOCUMENTS, ROOT, in_words_of, publish, refreshed
from unidecouple import config
from unidecouple.compare.plan import Comparison
from unidecouple.files import read_text
from unidecouple.report.results import load_results

FIELD = json.loads(read_text(ROOT / "results" / "field" / "results.json.gz"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_quote_what_results_say(path: Path) -> None:
    assert refreshed(path.read_text()) == path.read_text(), "python results/refresh.py mends the tables; read the prose yourself"


def test_what_is_quoted() -> None:
    """So that the test above has something to find."""
    pages = {path.stem: path.read_text() for path in DOCUMENTS if path.parent.name == "experiments"}
    whole = {stem: re.findall(r"<!-- results/field: (.*) -->", text) for stem, text in pages.items() if "<!-- results/" in text}
    assert whole == {
        "field-scarce-replay": ["scores, S1-r16"],
        "field-joint-finetuning": ["scores, S2"],
        "paper-claims": ["claims"],
    }
    quoted = {
        (folder, scenario)
        for path in DOCUMENTS
        for folder, scenario in re.findall(r"results/([\w-]+)/.*scenario ([\w-]+)\):\n\n\| [^|]*\| POPE", path.read_text())
    }
    assert quoted == {
        ("field", "S1-r16"),
        ("field", "S2"),
        ("decouple", "S1-r16"),
        ("generation-only", "S1-r0"),
        ("generation-only-again", "S1-r0"),
        ("scarce-replay", "S1-r16"),
        ("ablations", "S1-r16"),
        ("joint-front", "S2"),
        ("demo", "S1-r0"),
        ("demo", "S1-r16"),
    }
    readme = (ROOT / "README.md").read_text()
    assert re.search(r"results/field/results.json.gz\), scenario S1-r16\):\n\n\| \| POPE", readme)


def test_figures_are_replaced_and_words_are_not() -> None:
    """Against means and deviations worked out here; rows without a variant's name stay."""
    scores = {}
    for benchmark in ("pope", "vqa", "geneval"):
        mine = [r for r in FIELD["rows"] if (r["scenario"], r["variant"], r["benchmark"]) == ("S2", "moe", benchmark)]
        values = [r["value"] for r in mine if r["metric"] == {"geneval": "overall"}.get(benchmark, "accuracy")]
        scores[benchmark] = (f"{statistics.mean(values):.3f}"[1:], f"{statistics.stdev(values):.3f}"[1:])
    head = "See (`results/field/`, scenario S2):\n\n| | P | V | G |\n|---|---|---|---|\n"
    text = head + "{}| none | .5 | .1 | .0 |\n\n| `moe` | 1 | 2 | 3 |\n"
    wrong = "| a mixture (`moe`) | .1 | .2 | .3 |\n| `moe` | .1 ± .1 | .2 ± .1 | .3 ± .1 |\n"
    means, both = (
        " | ".join(mean for mean, _ in scores.values()),
        " | ".join(f"{mean} ± {spread}" for mean, spread in scores.values()),
    )
    assert refreshed(text.format(wrong)) == text.format(f"| a mixture (`moe`) | {means} |\n| `moe` | {both} |\n")


def test_whole_tables_are_replaced() -> None:
    found = refreshed("<!-- results/field: scores, S2 -->\n\n| old |\n| table |\n\nText.\n")
    assert found.startswith(
        "<!-- results/field: scores, S2 -->\n\n| | seeds | POPE | VQA | GenEval |\n|---|---|---|---|---|\n| `start` | 1 | .979 |"
    )
    assert found.endswith(" |\n\nText.\n")
    assert "old" not in found


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'\| `moo` .*' is of a variant that results/field has not in 'S2'"):
        refreshed("(`results/field/`, scenario S2):\n\n| `moo` | .1 | .2 | .3 |\n")


def test_publishing_copies_under_the_comparison_s_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refresh, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results.json").write_text(json.dumps({"meta": {"name": "own"}, "rows": []}, indent=1))
    kept = tmp_path / "results" / "own"
    kept.mkdir()
    (kept / "results.json").write_text("an earlier version")
    publish(tmp_path)
    assert [path.name for path in kept.iterdir()] == ["results.json.gz"], "one file, the compressed one"
    written = (kept / "results.json.gz").read_bytes()
    assert gzip.decompress(written) == b'{"meta": {"name": "own"}, "rows": []}\n'
    publish(kept)
    assert (kept / "results.json.gz").read_bytes() == written, "equal results are equal bytes"


def test_tables_use_the_words_of_today_s_recipe() -> None:
    """A claim that compares something else, which the recipe does not have, keeps its words; the results themselves stay."""
    old = load_results(ROOT / "results" / "field")
    odd = {**old.meta["config"]["claims"][0], "says": "Nobody claims this.", "step": 7}
    stored = {**old.meta, "config": {**old.meta["config"], "claims": [odd, *old.meta["config"]["claims"]]}}
    grid = config.load(Comparison, [ROOT / "recipes" / "compare" / "field.yaml"])
    new = in_words_of(replace(old, meta=stored), grid)
    assert (old.title("mot_task_held"), new.title("mot_task_held")) == ("MoT by task, held", "MoT by task, understanding frozen")
    first, *others = [claim["says"] for claim in new.meta["config"]["claims"]]
    assert first == "Nobody claims this."
    assert len(others) == len(old.meta["config"]["claims"])
    assert set(others) <= {claim.says for claim in grid.claims}
    assert new.rows == old.rows
