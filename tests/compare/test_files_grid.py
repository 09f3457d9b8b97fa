"""A comparison on a user's own files, from the recipe to the page: two variants, two seeds, held-out scores of both tasks."""

from __future__ import annotations

import json
import statistics
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from own_data import asked, flat, write_jsonl, write_pictures
from published_sets import write_pope
from small_runs import TWO_STEPS
from unidecouple import config
from unidecouple.compare import runner
from unidecouple.compare.grid import Comparison, Scenario, Variant
from unidecouple.compare.plan import Job, jobs
from unidecouple.compare.runner import CompareOptions, run_comparison
from unidecouple.data.settings import Files, Source
from unidecouple.eval.suite import metric_named
from unidecouple.methods.stage import Stage
from unidecouple.report.page import write_report
from unidecouple.report.results import load_results
from unidecouple.run import RunConfig
from unidecouple.train.train import train

pytestmark = pytest.mark.slow  # its fixture is a whole comparison, or a run

WORDS = ("cow", "pig", "cup", "bus")
ALL = (Stage(train={"generation": 1, "ffn": 1}),)


def own_files(folder: Path) -> Files:
    """Questions and prompts about four images; two of them are held out."""
    write_pictures(folder, *(f"{word}.png" for word in WORDS))
    for name, words in (("train", WORDS[:2]), ("held", WORDS[2:])):
        questions = [asked(f"{word}.png", f"Is there a {word} in the image?") for word in words]
        write_jsonl(folder / f"{name}.jsonl", [*questions, *(flat(f"{word}.png", f"a photo of a {word}") for word in words)])
    held_out = (Source(folder / "held.jsonl"),)
    return Files((Source(folder / "train.jsonl"),), validation=held_out, mmu_batch_size=2, t2i_batch_size=3, max_length=128)


def grid_of(base: Path, folder: Path, **evaluation: Any) -> Comparison:
    scored = replace(TWO_STEPS.evaluation, eval_steps=2, eval_batches=1, **evaluation)
    return Comparison(
        "grid",
        {"own": Scenario("Our own files.", str(base))},
        {"joint": Variant("Both tasks.", stages=ALL), "drawn": Variant("Generation alone.", stages=ALL, tasks="t2i")},
        seeds=(0, 1),
        run=replace(TWO_STEPS, data=own_files(folder), evaluation=scored),
        focus="drawn",
    )


@pytest.fixture(scope="module")
def compared(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the comparison, whose runs are executed in this process."""
    place = tmp_path_factory.mktemp("files")

    def call(arguments: Sequence[str], job: Job, kept: Path, children: object) -> int:
        run = config.load(RunConfig, [Path(arguments[1])])
        train(run, Path(arguments[3]), Path(arguments[5]), lambda line: None, threading.Event())
        return 0

    grid = grid_of(small_base, place, benchmarks={"pope": write_pope(place / "pope")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_call", call)
        run_comparison(grid, CompareOptions(place / "grid", place / "cache", 1))
    return place / "grid"


def test_every_variant_is_scored_on_both_tasks(compared: Path) -> None:
    """Also the one that trains generation alone: without that, nobody sees what it forgets."""
    content = json.loads((compared / "results.json").read_text())
    final = {
        (row["variant"], row["seed"], row["benchmark"])
        for row in content["rows"]
        if row["metric"] in ("log_probability", "accuracy")
    }
    benchmarks = ("answers", "image_tokens", "pope")
    cells = [("start", 0), *((variant, seed) for variant in ("joint", "drawn") for seed in (0, 1))]
    assert final == {(*cell, benchmark) for cell in cells for benchmark in benchmarks}
    held_out = [row["value"] for row in content["rows"] if row["metric"] == "log_probability"]
    assert all(value < 0 for value in held_out)
    assert content["meta"]["data"] == "files"
    assert (content["meta"]["control"], content["meta"]["missing"]) == ("joint", [])
    assert (compared / "own" / "drawn" / "seed1" / "eval" / "pope" / "card.json").is_file()


def test_budgets_are_counted_on_the_files(compared: Path) -> None:
    """Two steps of 2 and of 3; a sequence holds its 16 image tokens and words, and not those of the synthetic world's samples."""
    budgets = json.loads((compared / "results.json").read_text())["meta"]["budgets"]["own"]
    assert budgets["joint"]["samples"] == {"mmu": 4, "t2i": 6}
    assert budgets["drawn"]["samples"] == {"mmu": 0, "t2i": 6}
    log = [json.loads(line) for line in (compared / "own/joint/seed0/metrics.jsonl").read_text().splitlines()]
    assert budgets["joint"]["tokens"]["t2i"] == pytest.approx(log[-1]["tokens/t2i"], rel=0.1)


def test_the_statistics_are_those_of_every_grid(compared: Path) -> None:
    """Differences paired by seed, worked out here from the rows."""
    rows = json.loads((compared / "results.json").read_text())["rows"]
    metric = metric_named("image_tokens")
    found = load_results(compared).delta("own", "drawn", metric)

    def score(variant: str, seed: int) -> float:
        (value,) = (
            row["value"]
            for row in rows
            if (row["variant"], row["seed"], row["benchmark"], row["metric"]) == (variant, seed, "image_tokens", "log_probability")
        )
        return float(value)

    gaps = [score("drawn", seed) - score("joint", seed) for seed in (0, 1)]
    assert found is not None
    assert (found.mean, found.count) == (pytest.approx(statistics.mean(gaps)), 2)
    assert found.half_width == pytest.approx(12.7062 * statistics.stdev(gaps) / 2**0.5, rel=1e-4)


def test_the_page_shows_them(compared: Path) -> None:
    page = write_report(compared).read_text()
    for words in ("Our own files.", "Held-out answers log probability", "Held-out image tokens log probability", "POPE accuracy"):
        assert words in page, words
    assert "in points and nats per token, paired by seed: POPE" in page
    assert "2 steps with 4 understanding samples" in page
    assert "OpenMoji" not in page
    assert "are the mean log-probability" in page
    assert "| | seeds | POPE | Held-out answers | Held-out image tokens |" in (compared / "scores.md").read_text()


def test_what_only_the_world_has_is_refused(small_base: Path, tmp_path: Path) -> None:
    grid = grid_of(small_base, tmp_path)
    with_pairs = replace(grid, variants={"joint": Variant("a", data={"router_aux_samples": 2})}, focus="")
    with pytest.raises(ValueError, match=r"data of variant 'joint': unknown key 'router_aux_samples'"):
        jobs(with_pairs)
    simple = replace(grid, scenarios={"own": Scenario("a", str(small_base), data={"single_object_steps": 3})})
    with pytest.raises(ValueError, match=r"data of scenario 'own': unknown key 'single_object_steps'"):
        jobs(simple)
    unseen = replace(grid, run=replace(grid.run, data=replace(grid.run.data, validation=())))
    with pytest.raises(ValueError, match=r"run\.data\.validation is empty"):
        jobs(unseen)


def test_single_tasks_keep_the_held_out_batches_of_both(small_base: Path, tmp_path: Path) -> None:
    """The larger of the batch sizes, unless the recipe names one."""
    grid = grid_of(small_base, tmp_path)
    sizes = {job.config.evaluation.eval_batch_size for job in jobs(grid)}
    assert sizes == {3}
    drawn = next(job for job in jobs(grid_of(small_base, tmp_path, eval_batch_size=5)) if job.name == "drawn")
    assert (drawn.config.data.mmu_batch_size, drawn.config.data.t2i_batch_size) == (0, 3)
    assert drawn.config.evaluation.eval_batch_size == 5
