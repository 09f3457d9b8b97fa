"""The page: whole, self-contained, well-formed, and made from whatever is there."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from unidecouple.figures.style import variant_styles
from unidecouple.report import write_report
from unidecouple.report.page import emphasize
from unidecouple.report.results import load_results
from unidecouple.report.sample_grid import sample_grid
from unidecouple.report.tables import details, headline

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Collects what a browser would load, and checks that every element is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.loads += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "srcset", "poster", "data"}]
        self.images += [found] if tag == "img" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(folder: Path) -> Reader:
    reader = Reader()
    reader.feed(write_report(folder).read_text(encoding="utf-8"))
    reader.close()
    return reader


def test_the_page_is_well_formed_and_loads_nothing(experiment: Any) -> None:
    page = read(experiment.write())
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in page.loads)
    assert {target[1:] for target in page.loads if target.startswith("#")} <= set(page.ids)
    text = (experiment.folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\((?!#)|@import|<script|<link", text)


@pytest.mark.slow
def test_a_file_of_the_user_s_own_stays(experiment: Any) -> None:
    experiment.meta["config"] |= {"claims": [{"says": "s", "source": "p", "of": None}]}
    folder = experiment.write()
    for name in ("report.html", "scores.md", "claims.md"):
        (folder / name).write_text("my own notes")
        with pytest.raises(ValueError, match=f"{re.escape(name)} exists, and unidecouple did not write it"):
            write_report(folder)
        assert {path.name for path in folder.iterdir() if path.is_file()} == {"results.json", name}
        (folder / name).unlink()
    write_report(folder)
    (folder / "scores.md").write_text("## S1-r0\n\n| | seeds | POPE |\n|---|---|---|\n")  # as 0.1.0 wrote it
    (folder / "claims.md").write_text("| claim | source | where | difference | seeds | here |\n")
    write_report(folder)
    assert (folder / "scores.md").read_text().startswith("<!-- unidecouple -->")


@pytest.mark.slow
def test_counts_of_runs_agree(experiment: Any) -> None:
    """Scoring the start is no run: not in the line under the title, nor among those that are missing."""
    runs = sum(run["variant"] != "start" for run in experiment.runs)
    missing = [{"scenario": "S1-r0", "variant": "moe", "seed": 0}, {"scenario": "S2", "variant": "start", "seed": 0}]
    experiment.meta["missing"] = missing
    text = write_report(experiment.write()).read_text()
    assert f"<span>{runs} runs</span>" in text
    assert f"1 of {runs + 1} runs are not finished: plain MoE in S1-r0 (seed 0) and start in S2 (seed 0)." in text
    for run in experiment.runs:
        run["source"] = "2026-01-01"
    experiment.meta |= {"missing": missing[1:], "sources": {}}
    text = write_report(experiment.write()).read_text()
    assert len(experiment.runs) > runs
    assert f"{runs} runs ({runs} taken from elsewhere)" in text
    assert "Partial results: the start is not scored: start in S2 (seed 0)." in text


def test_every_part_is_there(experiment: Any) -> None:
    experiment.meta["config"] |= {"max_steps": 400}
    experiment.meta |= {"command": "unidecouple demo", "wall_seconds": 552.0, "cpu_seconds": 7500.0, "commit": None,
                        "notes": ["What the paper <says>."], "scenarios": {"S1-r0": "Adding <generation>."}}  # fmt: skip
    page = read(experiment.write())
    for words in (
        "A <small> experiment",
        "lost 32.0 ± 5.0 points",
        "9 min 12 s of wall time",
        "2 h 5 min of CPU time",
        "Adding <generation>.",
        "Generation loss",
        "Understanding loss",
        "Task router right",
        "UniDecouple at step 400, 3 seeds",
        "In 4 of 4 weight matrices",
        "90.0% of understanding tokens",
        "Not comparable with published figures",
        "What the paper <says>.",
        "OpenMoji",
        "unidecouple demo",
        '"max_steps": 400',
    ):
        assert words in page.text, words
    assert "is missing" not in page.text


@pytest.mark.slow
def test_pictures_stand_side_by_side_for_shared_prompts(experiment: Any) -> None:
    page = read(experiment.write())
    assert [image["alt"] for image in page.images] == [
        f"Image by {name} for: a photo of a cow" for name in ("start", "dense, generation only", "UniDecouple")
    ]
    shown = sample_grid(load_results(experiment.folder), "S1-r0")
    assert [picture.correct for picture in shown.prompts[0].pictures] == [False, True, True]
    assert shown.tallies == ("start: 0 of 1 right", "dense, generation only: 1 of 1 right", "UniDecouple: 1 of 1 right")
    assert 'title="no &#34;cow&#34; &amp; so on"' in (experiment.folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("keep", [(), ("metrics.jsonl",), ("samples.json", "conflict.json")])
def test_missing_logs_leave_out_their_figure_and_say_so(experiment: Any, keep: tuple[str, ...]) -> None:
    folder = experiment.write()
    for path in folder.rglob("seed-*/*"):
        if path.name not in keep:
            path.unlink()
    page = read(folder)
    sentences = {
        "metrics.jsonl": "No loss curve: no run of S1-r0 has metrics.jsonl",
        "scores.jsonl": "No curve of scores: no run of S1-r0 has scores.jsonl",
        "conflict.json": "No run of S1-r0 has conflict.json",
        "routing.json": "No run of S1-r0 has routing.json",
        "samples.json": "No images of UniDecouple: samples.json is missing.",
    }
    for name, sentence in sentences.items():
        if name != "samples.json" or name not in keep:
            assert (sentence in page.text) == (name not in keep)
    assert page.images == []
    assert "lost 32.0 ± 5.0 points" in page.text


def test_one_run_without_its_log_is_named(experiment: Any) -> None:
    folder = experiment.write()
    (folder / "S1-r0/dense_t2i/seed-1/metrics.jsonl").unlink()
    assert "Without dense, generation only (seed 1): metrics.jsonl is missing there." in read(folder).text


def test_a_broken_log_stops_with_its_name_and_keeps_the_earlier_page(experiment: Any) -> None:
    folder = experiment.write()
    earlier = '<meta name="generator" content="unidecouple">earlier'
    (folder / "report.html").write_text(earlier)
    (folder / "S1-r0/unidecouple/seed-0/metrics.jsonl").write_text('{"step": 1}\n{"st')
    with pytest.raises(ValueError, match=r"seed-0/metrics\.jsonl: line 2 is no JSON"):
        write_report(folder)
    assert (folder / "report.html").read_text() == earlier


def test_the_headline_table(experiment: Any) -> None:
    experiment.meta |= {"variants": {"unidecouple": "Ours."}}
    experiment.row("S1-r0", "start", 0, "pope", "accuracy/blind", 0.577, step=0)
    results = load_results(experiment.write())
    table = headline(results, "S1-r0", variant_styles(results.names, results.title, role=results.role))
    assert table.columns[0].notes == ("judge: official", "ceiling 100.0", "floor 50.0", "blind 57.7")
    assert table.control == "dense, generation only"
    start, dense, ours = table.lines
    assert (start.seeds, dense.seeds, ours.is_ours, ours.description) == ("the base", "3 seeds", True, "Ours.")
    assert [(s.mean, s.spread, s.delta, s.delta_spread, s.verdict) for s in ours.scores] == [
        ("94.0", " ± 2.5", "+32.0", " ± 4.3", "ahead"),
        ("80.0", " ± 2.5", "+50.0", " ± 2.5", "ahead"),
        ("47.0", " ± 2.5", "\u22123.0", " ± 2.5", "behind"),
    ]
    assert (dense.scores[0].mean, dense.scores[0].delta, start.scores[0].spread) == ("62.0", "", "")


def test_detail_tables_hold_every_metric_and_counts_stay_counts(experiment: Any) -> None:
    experiment.row("S1-r0", "unidecouple", 0, "pope", "unparsed/random", 3.0)
    experiment.row("S1-r0", "unidecouple", 0, "pope", "correlation", -0.25)
    experiment.row("S1-r0", "unidecouple", 0, "loss", "t2i", 5.125)
    experiment.row("S1-r0", "unidecouple", 0, "conflict", "cosine", -0.25)
    experiment.row("S1-r0", "unidecouple", 0, "routing", "token_entropy/mmu", 0.5)
    results = load_results(experiment.write())
    tables = {table.title: dict(table.lines) for table in details(results, "S1-r0")}
    assert tables["loss"]["t2i, nats per token"][2] == "5.125"
    assert (tables["conflict"]["cosine"][2], tables["routing"]["token entropy/mmu"][2]) == ("\u22120.250", "0.500")
    pope = details(results, "S1-r0")[0]
    assert pope.columns == ("start", "dense, generation only", "UniDecouple", "ceiling", "floor")
    assert dict(pope.lines) == {
        "accuracy": ("94.0", "62.0 ± 5.0", "94.0 ± 2.5", "100.0", "50.0"),
        "unparsed/random": ("\u2013", "\u2013", "3.0", "100.0", "50.0"),
        "correlation": ("\u2013", "\u2013", "\u221225.0", "100.0", "50.0"),
    }


def test_emphasis_escapes_first() -> None:
    assert emphasize("<b> 31.2 ± 2.0, 94% (95% intervals)") == (
        "&lt;b&gt; <strong>31.2 ± 2.0</strong>, <strong>94%</strong> (95% intervals)"
    )


def test_results_alone_are_enough(new_experiment: Any) -> None:
    made = new_experiment()
    made.add("S7", "by label", {"vqa": (0.4,)})
    page = read(made.write())
    assert "no run of UniDecouple or of dense joint has a score yet" in page.text
    assert json.loads((made.folder / "results.json").read_text())["rows"][0]["value"] == 0.4
