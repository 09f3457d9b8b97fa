"""A comparison made from a model, files and methods' names: its grid, what is refused, and its page."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from own_data import write_questions_and_prompts
from published import write_published
from published_sets import write_pope
from unidecouple import api, cli, config, finetune
from unidecouple.compare import runner
from unidecouple.compare.budget import cells, check
from unidecouple.compare.grid import Comparison
from unidecouple.compare.methods import methods
from unidecouple.compare.plan import Job, jobs
from unidecouple.data.settings import Files
from unidecouple.finetune import FineTune
from unidecouple.own_comparison import OwnComparison, configure_comparison
from unidecouple.run import RunConfig
from unidecouple.train.train import train


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("user")
    write_published(place / "janus")
    write_questions_and_prompts(place)
    return place


def grid_of(place: Path, *names: str, data: str = "both", overrides: Sequence[str] = (), **given: Any) -> tuple[Comparison, str]:
    lines: list[str] = []
    asked_for = FineTune(str(place / "janus"), (place / f"{data}.jsonl",), epochs=2)
    own = OwnComparison(asked_for, names, **{"workers": 1, **given})
    grid = configure_comparison(own, ["run.device=cpu", *overrides], place / "cache", lines.append)
    return grid, "\n".join(lines)


def test_the_grid_has_the_registry_s_methods_on_one_budget(place: Path) -> None:
    grid, lines = grid_of(place, "lora_task", "dense", "unidecouple")
    assert list(grid.variants) == ["lora_task", "dense_joint", "unidecouple"]
    assert (grid.control_name, grid.focus_name, grid.seeds) == ("dense_joint", "lora_task", (0, 1, 2))
    for name, variant in grid.variants.items():
        short = tuple(replace(stage, warmup_steps=0) for stage in methods("janus")[name].stages)
        assert (variant.structure, variant.stages) == (methods("janus")[name].structure, short)  # of 2 steps none warms up
    assert isinstance(grid.run.data, Files)
    assert grid.run.data.split == (0.0, 0.95)
    assert (grid.run.max_steps, grid.run.data.mmu_batch_size, grid.run.data.t2i_batch_size) == (2, 19, 19)
    assert not grid.run.bf16
    planned = jobs(grid)
    check(grid, cells(planned))  # equal, or it raises
    assert {(job.config.max_steps, job.config.evaluation.num_samples) for job in planned if job.name != "start"} == {(2, 6)}
    assert "9 runs of 2 steps: lora_task, dense_joint, unidecouple with seeds 0, 1, 2" in lines
    assert "19 mmu and 19 t2i samples to train on" in lines


def test_what_merges_brings_its_parents(place: Path) -> None:
    grid, lines = grid_of(place, "dense", "task_arithmetic")
    assert list(grid.variants) == ["dense_joint", "dense_mmu", "dense_t2i", "task_arithmetic"]
    assert "merges dense_mmu and dense_t2i: added dense_mmu and dense_t2i" in lines
    alone = next(job for job in jobs(grid) if job.name == "dense_t2i")
    assert (alone.config.data.mmu_batch_size, alone.config.data.t2i_batch_size) == (0, 19)


def test_what_decouples_brings_its_parents(place: Path) -> None:
    """Also where a run starts from the decoupled model; with understanding's data or without."""
    grid, lines = grid_of(place, "dense_t2i", "decouple_r32_tuned", "decouple_bits")
    assert list(grid.variants) == ["dense_t2i", "decouple_r32", "decouple_r32_tuned", "decouple_bits"]
    assert "'decouple_r32_tuned' starts from decouple_r32: added decouple_r32" in lines
    assert "3 more runs start from models of these" in lines
    planned = jobs(grid)
    tuned = next(job for job in planned if job.name == "decouple_r32_tuned")
    assert (tuned.config.max_steps, tuned.config.stages[0].warmup_steps) == (100, 10)
    check(grid, cells(planned))
    grid, _ = grid_of(place, "dense_t2i", "decouple_r32", data="t2i")
    check(grid, cells(jobs(grid)))


def test_overrides_are_the_grid_s_and_win(place: Path) -> None:
    grid, _ = grid_of(place, "dense", "lora_task", overrides=["seeds=[7]", "run.max_steps=5", "control=lora_task"])
    assert (grid.seeds, grid.run.max_steps, grid.control_name) == ((7,), 5, "lora_task")


def test_memory_is_that_of_the_largest_method_and_of_all_runs_at_a_time(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([10, 30, 10, 20])  # dense, then the other, whole and in two parts
    monkeypatch.setattr(finetune, "_peak", lambda run, processes: next(peaks))
    monkeypatch.setattr(finetune, "_host_memory", lambda: round(2 * 22 / finetune._USABLE))
    grid, lines = grid_of(place, "dense", "moe", workers=2, overrides=["seeds=[0]"])
    assert grid.run.gradient_accumulation_steps == 2
    assert "for each of 2 runs at a time" in lines


@pytest.mark.parametrize(
    ("data", "names", "message"),
    [
        ("both", ("dense",), "a comparison needs two methods, but --methods names dense_joint"),
        ("both", ("dense", "unidecuople"), "did you mean 'unidecouple'"),
        ("t2i", ("dense", "dense_mmu"), "'dense_mmu' trains mmu alone, and the data have none of it"),
        ("t2i", ("dense", "task_arithmetic"), "'dense_mmu' trains mmu alone, and the data have none of it"),
    ],
)
def test_mistakes_are_named(place: Path, data: str, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid_of(place, *names, data=data)


def test_missing_benchmark_files_are_named_before_anything_runs(place: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        grid_of(place, "dense", "moe", benchmarks={"pope": place / "nowhere"})


def test_recipe_and_data_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="give --model, --data and --methods together"):
        api.compare("demo", model="m", data="d", methods=["dense"])
    with pytest.raises(ValueError, match="give --model, --data and --methods together"):
        api.compare(model="m", methods=["dense"])
    with pytest.raises(ValueError, match="give a recipe, or your data"):
        api.compare()


def test_the_command_line_passes_everything_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: dict[str, Any] = {}
    monkeypatch.setattr(api, "compare", lambda recipes, output, **given: called.update(given, recipes=recipes) or tmp_path)
    words = ["compare", "--model", "m", "--data", "a", "b", "seeds=[0]", "--methods", "dense,moe", "--output", str(tmp_path)]
    assert cli.main([*words, "--benchmarks", "pope=x,mme=y", "--epochs", "2", "run.max_steps=1"]) == 0
    assert (called["recipes"], called["model"], called["data"]) == ([], "m", [Path("a"), Path("b")])
    assert (called["methods"], called["overrides"]) == (["dense", "moe"], ["run.max_steps=1", "seeds=[0]"])
    assert called["options"].benchmarks == {"pope": Path("x"), "mme": Path("y")}
    assert called["options"].epochs == 2
    again, first = called["options"].command, dict(called)
    assert cli.main(shlex.split(again)[1:]) == 0  # the command that results.json records is the same comparison
    assert {name: called[name] for name in ("model", "data", "methods", "overrides", "options")} == {
        name: first[name] for name in ("model", "data", "methods", "overrides", "options")
    }


def test_benchmarks_need_folders(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "--model", "m", "--data", "a", "--methods", "dense,moe", "--benchmarks", "pope"]) != 0
    assert "--benchmarks 'pope' must be NAME=FOLDER" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_has_losses_benchmarks_samples_and_costs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(arguments: Sequence[str], job: Job, kept: Path, children: object) -> int:
        run = config.load(RunConfig, [Path(arguments[1])])
        train(run, Path(arguments[3]), Path(arguments[5]), lambda line: None, threading.Event())
        return 0

    monkeypatch.setattr(runner, "_call", call)
    pope = {"pope": write_pope(place / "pope")}  # one run at a time: from_pretrained sets the default dtype of all threads
    options = api.GridOptions(cache=place / "cache", workers=1, benchmarks=pope, print_line=lambda line: None)
    small = {"seeds": [0, 1], "run.max_steps": 2, "run.device": "cpu", "run.diagnose": False, "run.report_to": []}
    small |= {"run.data.mmu_batch_size": 2, "run.data.t2i_batch_size": 2, "run.evaluation.eval_batches": 1}
    names = ["dense", "lora_task"]
    folder = api.compare(
        output=place / "grid", model=place / "janus", data=place / "both.jsonl", methods=names, overrides=small, options=options
    )
    content = json.loads((folder / "results.json").read_text())
    scored = {(row["variant"], row["benchmark"]) for row in content["rows"] if row["metric"] in ("log_probability", "accuracy")}
    assert scored == {(v, b) for v in ("start", "dense_joint", "lora_task") for b in ("answers", "image_tokens", "pope")}
    assert (content["meta"]["name"], content["meta"]["control"], content["meta"]["missing"]) == ("grid", "dense_joint", [])
    samples = json.loads((folder / "own/lora_task/seed0/samples.json").read_text())
    assert [row["tag"] for row in samples] == ["generation", "understanding"]  # one of each task's 20 records is held out
    assert samples[1]["reference"] == "yes"
    page = (folder / "report.html").read_text()
    for words in (
        "Held-out samples",
        "both.jsonl",
        samples[0]["prompt"],
        samples[1]["prompt"],
        "the data's own: yes",
        "POPE accuracy",
    ):
        assert words in page, words
    assert "the judge finds everything" not in page
    assert page.count("Image by ") == 3  # of the start and of both methods, for the one prompt
