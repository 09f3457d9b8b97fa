"""What a run on a user's model and files becomes: method, data, steps, memory, and which setting wins."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from own_data import asked, write_jsonl, write_pictures, write_questions_and_prompts
from published import write_published
from unidecouple import finetune
from unidecouple.batch import Task
from unidecouple.cli import main
from unidecouple.compare.methods import methods
from unidecouple.config import ConfigError
from unidecouple.data.file_batches import indices_of
from unidecouple.data.formats import open_source
from unidecouple.data.settings import Files
from unidecouple.finetune import FineTune, configure
from unidecouple.run import RunConfig


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("user")
    write_published(place / "janus")
    understood, generated = write_questions_and_prompts(place)
    write_jsonl(place / "same.jsonl", [asked("0.png", f"Is there a cow or a {n}?") for n in range(9)])
    write_jsonl(place / "mmu.jsonl", understood)
    write_jsonl(place / "one.jsonl", [*generated, understood[0]])
    return place


def run_of(place: Path, data: str = "both", overrides: Sequence[str] = (), **asked_for: object) -> tuple[RunConfig, str]:
    lines: list[str] = []
    asked = FineTune(str(place / "janus"), (place / f"{data}.jsonl",), **asked_for)  # type: ignore[arg-type] - a test's own
    return configure(asked, ["device=cpu", *overrides], place / "cache", lines.append), "\n".join(lines)


@pytest.mark.parametrize(
    ("data", "method", "evidence"),
    [
        ("both", "lora_task", "docs/experiments/per-task-lora.md"),
        ("t2i", "lora_task_held", "docs/experiments/frozen-understanding.md"),
        ("mmu", "lora_task", "no experiment covers this case"),
    ],
)
def test_auto_chooses_by_the_data_and_gives_its_evidence(place: Path, data: str, method: str, evidence: str) -> None:
    run, lines = run_of(place, data)
    assert [stage.lora for stage in run.stages] == [stage.lora for stage in methods("janus")[method].stages]
    assert f"--method {method}: " in lines
    assert evidence in lines
    assert (Path(__file__).parents[1] / evidence).is_file() or data == "mmu"
    assert [run.data.mmu_batch_size > 0, run.data.t2i_batch_size > 0] == [data != "t2i", data != "mmu"]


def test_a_fraction_of_each_task_is_held_out_and_not_trained_on(place: Path) -> None:
    run, _ = run_of(place, validation_fraction=0.25)
    assert isinstance(run.data, Files)
    assert run.data.held_out is not None
    parts = []
    for files in (run.data, run.data.held_out):
        opened = [open_source(source) for source in files.sources]
        for task in Task:
            ((_, index),) = indices_of(files, opened, task)
            parts.append({str(index.record(number)) for number in range(len(index))})
    assert [len(part) for part in parts] == [15, 15, 5, 5]
    assert not (parts[0] | parts[1]) & (parts[2] | parts[3])
    assert len(set.union(*parts)) == 40


def test_steps_follow_the_data(place: Path) -> None:
    """19 of 20 samples per task are trained on: fewer than a batch of 64."""
    run, lines = run_of(place, epochs=3)
    assert (run.data.mmu_batch_size, run.data.t2i_batch_size, run.max_steps) == (19, 19, 3)
    assert "max_steps=3: 3 epochs in batches of 19" in lines
    run, _ = run_of(place, overrides=["data.t2i_batch_size=4"], epochs=2)
    assert run.max_steps == 10  # ceil(2 x 19 / 4)
    assert [stage.warmup_steps for stage in run.stages] == [1]
    run, _ = run_of(place)
    assert run.max_steps == 10  # epochs


def test_lines_state_what_overrides_chose_and_warm_up_follows_them(place: Path) -> None:
    """19 samples in batches of 19 are one step per epoch. Warm-up is a tenth of the steps, up to the recipe's 100."""
    run, lines = run_of(place, overrides=["max_steps=200", "gradient_accumulation_steps=4"])
    assert (run.max_steps, run.stages[0].warmup_steps, run.logging_steps) == (200, 20, 10)
    assert "max_steps=200: 200 epochs in batches of 19" in lines
    assert f"gradient_accumulation_steps=4: {finetune._peak(run, 1) / 1e9:.3g} GB" in lines
    assert "GB in this machine's memory" in lines
    assert "max_steps=10" not in lines


def test_epochs_are_a_key_too_and_max_steps_wins(place: Path) -> None:
    """As in transformers. With a recipe they count its own files: 20 samples of a task in batches of 4 are 5 steps a pass."""
    by_key, _ = run_of(place, overrides=["num_train_epochs=3"])
    assert (by_key.max_steps, by_key.num_train_epochs) == (3, 3.0)
    both, lines = run_of(place, overrides=["num_train_epochs=3", "max_steps=7"])
    assert both.max_steps == 7
    assert "max_steps=7 takes precedence over num_train_epochs=3" in lines
    own = [f"data.sources=[{{path: {place / 'both.jsonl'}}}]", "data.mmu_batch_size=8", "data.t2i_batch_size=4"]
    said: list[str] = []
    asked_for = FineTune(recipe=(Path("janus_pro/dense_joint"),))
    counted = configure(asked_for, [*own, "max_steps=-1", "num_train_epochs=2.5"], place / "cache", said.append)
    assert (counted.max_steps, said) == (13, ["max_steps=13: 2.5 epochs"])  # ceil(2.5 x 20 / 4)
    kept = configure(asked_for, [*own, "num_train_epochs=2"], place / "cache", said.append)
    assert kept.max_steps == 10_000
    assert "max_steps=10000 takes precedence over num_train_epochs=2" in said[-1]
    with pytest.raises(ConfigError, match="max_steps=-1 counts by num_train_epochs, which is not given"):
        configure(asked_for, ["max_steps=-1"], place / "cache", print)
    with pytest.raises(ValueError, match="the synthetic benchmark is generated: set max_steps"):
        configure(FineTune(recipe=(Path("base/unified"),)), ["max_steps=-1", "num_train_epochs=1"], place / "cache", print)


def test_precedence_is_recipe_then_options_then_overrides(place: Path) -> None:
    recipe, _ = run_of(place)
    assert (recipe.save_steps, recipe.stages[0].learning_rate) == (500, 1e-4)  # the recipe's
    assert (recipe.max_steps, recipe.model_name_or_path) == (10, str(place / "janus"))  # what follows from data; an option
    won = ["max_steps=7", "stages.0.learning_rate=1e-5", "stages.0.warmup_steps=3", "model_name_or_path=understanding"]
    run, _ = run_of(place, overrides=[*won, "gradient_accumulation_steps=2", "bf16=true"])
    assert (run.max_steps, run.stages[0].learning_rate, run.stages[0].warmup_steps) == (7, 1e-5, 3)
    assert (run.model_name_or_path, run.gradient_accumulation_steps, run.bf16) == ("understanding", 2, True)
    assert not recipe.bf16  # slower than float32 on a CPU, so the recipe's true does not hold there


def test_options_go_with_a_recipe_too(place: Path) -> None:
    recipe = (Path("janus_pro/generation_lora"),)
    run, _ = run_of(place, "t2i", recipe=recipe, validation=(place / "both.jsonl",))
    assert isinstance(run.data, Files)
    assert (run.stages[0].name, run.data.mmu_batch_size, run.data.sources[0].fraction) == ("LoRA", 0, (0, 1))
    assert [source.path.name for source in run.data.validation] == ["both.jsonl"]
    only_model = configure(FineTune(str(place / "janus"), recipe=recipe), [], place, print)
    assert (only_model.model_name_or_path, only_model.max_steps) == (str(place / "janus"), 10_000)


def test_plan_takes_what_train_takes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Method, batches and steps as train's, but not this machine's micro-batches. One epoch of 19 in 19 is one step."""
    asked = ["--model", str(place / "janus"), "--data", str(place / "both.jsonl"), "--method", "unidecouple", "--epochs", "1"]
    command = ["plan", *asked, "data.max_length=300", "--cache", str(place / "cache"), "--gpus", "1", "--json"]
    assert main(command) == 0
    printed = capsys.readouterr()
    planned = json.loads(printed.out)
    run, _ = run_of(place, method="unidecouple", epochs=1)
    assert planned["model"] == run.model_name_or_path
    assert [stage["name"] for stage in planned["stages"]] == [stage.name for stage in run.stages]
    assert sum(stage["samples"] for stage in planned["stages"]) == 19 + 19
    assert "max_steps=1: 1 epoch in batches of 19" in printed.err
    assert "gradient_accumulation_steps" not in printed.err
    assert main(["plan", "--model", str(place / "janus")]) == 1
    assert "give a recipe, or --model and --data" in capsys.readouterr().err
    assert main(["plan", "demo", "--method", "moe"]) == 1
    assert "both say how to train: leave one out" in capsys.readouterr().err


def test_micro_batches_follow_memory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = run_of(place)
    assert whole.gradient_accumulation_steps == 1
    peak = finetune._peak(whole, 1)
    monkeypatch.setattr(finetune, "_host_memory", lambda: int(0.9 * peak / finetune._USABLE))
    run, lines = run_of(place)
    assert run.gradient_accumulation_steps == 2
    assert finetune._peak(run, 1) <= 0.9 * peak
    assert "may not fit" not in lines
    monkeypatch.setattr(finetune, "_host_memory", lambda: 1)
    run, lines = run_of(place)
    assert run.gradient_accumulation_steps == 16  # the most that leaves each part a sample of 19
    assert "may not fit" in lines


@pytest.mark.parametrize(
    ("data", "given", "message"),
    [
        ("one", {}, "one mmu record, so none can be held out: name --validation"),
        ("same", {}, "the 9 mmu records share their images, so that none can be held out .* name --validation"),
        ("t2i", {"method": "dense_mmu"}, "'dense_mmu' trains mmu alone, and the data have none of it"),
        ("both", {"method": "unidecuople"}, "did you mean 'unidecouple'"),
        ("both", {"epochs": 0.0}, "epochs=0.0 must be above 0"),
        ("both", {"validation_fraction": 1.0}, "must lie between 0 and 1"),
        ("both", {"method": "moe", "recipe": (Path("x.yaml"),)}, "both say how to train: leave one out"),
    ],
)
def test_mistakes_are_named(place: Path, data: str, given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_of(place, data, **given)


def test_what_is_missing_is_named(place: Path) -> None:
    with pytest.raises(ValueError, match=r"give a recipe, or --model and --data"):
        FineTune(str(place))
    with pytest.raises(ValueError, match=r"--validation and --epochs go with --data"):
        FineTune(recipe=(Path("demo"),), epochs=1)
    with pytest.raises(ConfigError, match="max_step"):
        run_of(place, overrides=["max_step=3"])


def test_a_column_map_reaches_training_and_held_out_records(tmp_path: Path) -> None:
    write_pictures(tmp_path, *(f"{n}.png" for n in range(40)))
    data = write_jsonl(tmp_path / "a.jsonl", [{"q": "Is there a cow", "a": "yes", "path": f"{n}.png"} for n in range(40)])
    asked_for = FineTune("understanding", (data,), method="dense", columns={"question": "q", "answer": "a", "image": "path"})
    run = configure(asked_for, [], tmp_path / "cache", lambda line: None)
    assert isinstance(run.data, Files)
    assert run.data.held_out is not None
    assert [files.sources[0].columns["question"] for files in (run.data, run.data.held_out)] == ["q", "q"]
    with pytest.raises(ValueError, match="hold no record"):
        configure(replace(asked_for, columns={}), [], tmp_path / "cache", lambda line: None)
