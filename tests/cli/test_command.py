"""What a user types wrong: one line that says what is wrong, before any model is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from unidecouple.cli import main
from unidecouple.cli.command import share, whole

RECIPES = Path(__file__).parents[2] / "recipes"
GRID, RUN = str(RECIPES / "demo.yaml"), str(RECIPES / "base" / "unified.yaml")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate", "unified", "a cow", "--num-images", "0"], "--num-images: 0 must be from 1 to 10000"),
        (["generate", "unified", "a cow", "--seed", "-1"], "--seed: -1 must be at least 0"),
        (["chat", "unified", "--max-new-tokens", "0"], "--max-new-tokens: 0 must be from 1 to 1048576"),
        (["serve", "unified", "--port", "99999"], "--port: 99999 must be from 1 to 65535"),
        (["serve", "unified", "--batch-size", "0"], "--batch-size: 0 must be at least 1"),
        (["serve", "unified", "--max-queue", "none"], "--max-queue: 'none' is no whole number"),
        (["eval", "unified", "--num-images", "-2"], "--num-images: -2 must be from 1 to 10000"),
        (["eval", "unified", "--batch-size", "-1"], "--batch-size: -1 must be from 1 to 65536"),
        (["eval", "unified", "--limit", "0"], "--limit: 0 must be at least 1"),
        (["merge", "unified", "unified", "--steps", "-3"], "--steps: -3 must be at least 0"),
        (["compare", GRID, "--workers", "0"], "--workers: 0 must be at least 1"),
        (["diagnose", "unified", "--batches", "0"], "--batches: 0 must be at least 1"),
        (["data", "check", "a", "--max-bad-ratio", "nan"], "--max-bad-ratio: nan must be from 0 to 1"),
        (["data", "encode", "a", "--batch-size", "0"], "--batch-size: 0 must be at least 1"),
        (["data", "preview", "a", "--model=--"], "argument --model: '--' is no value"),
        (["chat", "unified", "--temperature", "nan"], "--temperature: nan must be from 0 to 100"),
        (["chat", "unified", "--top-p", "0"], "--top-p: 0 must be above 0 and at most 1"),
        (["generate", "unified", "a cow", "--guidance-scale", "1e400"], "--guidance-scale: 1e400 must be from 0 to 100"),
        (["generate", "unified", "a cow", "--guidance-scale=-1"], "--guidance-scale: -1 must be from 0 to 100"),
        (["infer", "unified", "a", "--image-temperature", "inf"], "--image-temperature: inf must be from 0 to 100"),
        (["eval", "unified", "--guidance-scale", "nan"], "--guidance-scale: nan must be from 0 to 100"),
        (["eval", "unified", "--temperature", "1" * 99], f"--temperature: {'1' * 40}… must be from 0 to 100"),
        (["merge", "unified", "unified", "--scale", "nan"], "--scale: nan must be a finite number"),
        (["merge", "unified", "unified", "--learning-rate", "0"], "--learning-rate: 0 must be above 0"),
        (["convert", "unified", "--alpha-init", "inf"], "--alpha-init: inf must be a finite number"),
        (["plan", RUN, "--gpus", "0"], "--gpus: 0 must be at least 1"),
        (["plan", RUN, "--samples", "inf"], "--samples: inf must be from 1 to 1e+15"),
        (["serve", "unified", "--drain-seconds", "nan"], "--drain-seconds: nan must be above 0 and at most 86400"),
        (["chat", "unified", "--seed", "9" * 5000], f"--seed: '{'9' * 40}…' is no whole number"),
    ],
)
def test_numbers_out_of_range(words: Sequence[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_types_of_numbers() -> None:
    assert (whole(0)("0"), whole(1, 3)("3"), share("0"), share("1")) == (0, 3, 0.0, 1.0)
    for read, text in ((whole(1), "1.5"), (whole(1, 3), "4"), (share, "x"), (share, "1.1")):
        with pytest.raises(argparse.ArgumentTypeError):
            read(text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate", "unified", "a cow", "", "--output", "out"], "a prompt is empty"),
        (["generate", "unified", "a cow", "--output", "out", "--device", "cuda"], "torch sees no GPU"),
        (["chat", "unified", "--device", "gpu"], "device=gpu cannot be used here"),
        (["serve", "unified", "--device", "cuda"], "torch sees no GPU"),
        (["chat", "unified", "--image", "no.png"], "--image no.png does not exist"),
        (["infer", "unified", "no.jsonl", "--output", "out"], "data no.jsonl does not exist"),
        (["infer", "unified", ".", "--output", "out"], "data . is a folder"),
        (["eval", "unified", "--benchmarks", "geneval", "--detections", "no.jsonl", "--output", "out"], "no.jsonl does not exist"),
        (["data", "encode", ".", "--model", "unified", "--output", "out", "--device", "cuda"], "torch sees no GPU"),
    ],
)
def test_what_is_refused_before_work_begins(
    words: Sequence[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    stderr = capsys.readouterr().err
    assert stderr.startswith("unidecouple: ")
    assert stderr.count("\n") == 1
    assert said in stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", GRID, "--output", "out"], "this is a grid of runs: `unidecouple compare` takes it"),
        (["plan", GRID], "`unidecouple compare` takes it"),
        (["compare", RUN], "this is one run: `unidecouple train` takes it"),
        (["assemble", RUN, "--output", "out"], "`unidecouple train` takes it"),
        (["train", RUN, "learning_rate=1e-3", "--output", "out"], "did you mean 'stages.0.learning_rate'?"),
        (["train", RUN, "evaluation.parser=none", "--output", "out"], "unknown parser 'none'"),
    ],
)
def test_a_recipe_of_another_command_names_it(
    words: Sequence[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    stderr = capsys.readouterr().err
    assert said in stderr
    assert stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_system_s_errors_name_the_file_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*given: object) -> None:
        (tmp_path / "gone").read_text()

    monkeypatch.setattr("unidecouple.report.write_report", lost)
    assert main(["report", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"unidecouple: {tmp_path / 'gone'}: no such file or directory\n"
