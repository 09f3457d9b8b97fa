"""Runs that another machine finished are taken as they are, and only where they are the very runs that the grid asks for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from small_runs import TWO_STEPS
from unidecouple.compare.elsewhere import base_hash, import_runs
from unidecouple.compare.merge import Merge
from unidecouple.compare.plan import Comparison, Job, Rate, Scenario, Variant, jobs
from unidecouple.compare.runner import CompareOptions, run_comparison
from unidecouple.methods.stage import Stage
from unidecouple.report.page import write_report

pytestmark = pytest.mark.slow  # its fixture is a whole comparison, or a run

DRAW = (Stage(train={"generation": 1}),)


def grid_of(base: Path, **more: Variant) -> Comparison:
    variants = {
        "one": Variant("a", stages=DRAW),
        "two": Variant("b", stages=(Stage(share=0.5, train={"generation": 1}),) * 2),
    } | more
    return Comparison("grid", {"S1": Scenario("replay", str(base), 2, 1)}, variants, rates={"": Rate()}, run=TWO_STEPS)


@pytest.fixture(scope="module")
def elsewhere(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``results.json`` of the whole grid."""
    folder = tmp_path_factory.mktemp("elsewhere")
    return run_comparison(grid_of(small_base), CompareOptions(folder / "grid", folder / "cache", 2, command="theirs"))


def test_a_part_here_and_the_rest_from_elsewhere_are_the_whole(small_base: Path, elsewhere: Path, tmp_path: Path) -> None:
    """Of two files the later tells; what it took itself keeps the source it had."""
    theirs = json.loads(elsewhere.read_text())
    folder, again = tmp_path / "grid", tmp_path / "again"
    order = CompareOptions(folder, tmp_path / "cache", 1, ("variant=two",), command="ours")
    run_comparison(grid_of(small_base), order)
    place = folder / "S1" / "one" / "seed0"
    path = run_comparison(grid_of(small_base), replace(order, only=(), results=(elsewhere,)))
    assert not place.exists(), "it was taken, not run"
    whole = json.loads(path.read_text())
    assert whole["rows"] == theirs["rows"]
    assert whole["meta"]["missing"] == []
    (source,) = whole["meta"]["sources"]
    assert [run.get("source") for run in whole["meta"]["runs"]] == [None, source, None]
    assert whole["meta"]["sources"][source]["command"] == "theirs"
    assert whole["meta"]["cpu_seconds"] == sum(run["cpu_seconds"] for run in whole["meta"]["runs"])
    assert "1 taken from elsewhere" in write_report(folder).read_text()

    third = json.loads(
        run_comparison(grid_of(small_base), CompareOptions(again, tmp_path / "cache", 1, results=(elsewhere, path))).read_text()
    )
    assert third["rows"] == theirs["rows"]
    assert [run["source"] for run in third["meta"]["runs"]] == [whole["meta"]["created"], source, whole["meta"]["created"]]
    assert set(third["meta"]["sources"]) == {source, whole["meta"]["created"]}


def test_what_is_merged_here_is_trained_here(small_base: Path, elsewhere: Path, tmp_path: Path) -> None:
    grid = grid_of(small_base, merged=Variant("c", merge=Merge(("one", "two")), other_budget="two models"))
    path = run_comparison(grid, CompareOptions(tmp_path / "grid", tmp_path / "cache", 2, ("variant=merged",), (elsewhere,)))
    meta = json.loads(path.read_text())["meta"]
    assert {run["variant"] for run in meta["runs"] if "source" not in run} == {"one", "two", "merged"}
    assert {run["variant"] for run in meta["runs"] if "source" in run} == {"start"}


def with_meta(elsewhere: Path, folder: Path, **meta: Any) -> Path:
    """A copy of the results with other ``meta``."""
    content = json.loads(elsewhere.read_text())
    path = folder / "results.json"
    path.write_text(json.dumps(content | {"meta": {name: value for name, value in (content["meta"] | meta).items() if value}}))
    return path


def planned(base: Path, **run: Any) -> list[Job]:
    return jobs(replace(grid_of(base), run=replace(TWO_STEPS, **run)))


def test_other_runs_are_refused(small_base: Path, elsewhere: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"another grid: S1/one/seed0 has max_steps: 2, not 3; leave it out"):
        import_runs([elsewhere], planned(small_base, max_steps=3))
    with pytest.raises(ValueError, match=r"start from other weights: .* was 0{12}, and is " + base_hash(str(small_base))[:12]):
        import_runs([with_meta(elsewhere, tmp_path, hashes={str(small_base): "0" * 64})], planned(small_base))


def test_runs_of_nobody_are_left_out(small_base: Path, elsewhere: Path) -> None:
    """Another grid's variant by another name, and a seed that it has not."""
    grid = replace(grid_of(small_base), variants={"three": Variant("c", stages=DRAW), "one": Variant("a", stages=DRAW)}, seeds=(1,))
    assert not import_runs([elsewhere], jobs(grid)).runs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read as results"),
        ("[]", "cannot be read as results"),
        ("{", "cannot be read as results"),
        ('{"meta": {}}', "lacks rows"),
        ('{"rows": [], "meta": {"config": {}}}', "lacks command, commit, created, hashes, platform, runs, versions"),
    ],
)
def test_what_is_no_results_is_refused(text: str | None, message: str, small_base: Path, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=rf"results\.json {message}.*; give a results\.json that"):
        import_runs([path], planned(small_base))
