"""What a dry run says, and that it writes no run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from small_runs import APART_THEN_JOINT
from unidecouple import config as configs
from unidecouple.cli import main
from unidecouple.methods.stage import GradientShielding, Stage
from unidecouple.methods.structure import TaskAwareMoE
from unidecouple.run import RunConfig
from unidecouple.train.dry_run import describe


def test_all_that_a_run_is(small_run: RunConfig, small_cache: Path) -> None:
    run = replace(small_run, structure=TaskAwareMoE(), stages=APART_THEN_JOINT)
    said: list[str] = []
    describe(run, small_cache, said.append)
    text = "\n".join(said)
    assert "experts_per_group: 2" in text
    assert "stage 2/2 'joint'" in text
    assert "lora" not in said[1]
    assert "lora" in said[2]
    answered = next(line for line in said if "<16 tokens of an image>" in line and "[[" in line)
    assert answered.strip().startswith("<bos> understand . <|user|> <begin_of_image>")
    assert "<eos>]]" in answered
    assert any(line.strip().endswith("<begin_of_image> [[16 image tokens]]") for line in said)


def test_it_fails_as_the_run_would(small_run: RunConfig, small_cache: Path) -> None:
    run = replace(small_run, stages=(Stage(train={"experts": 1}),))
    with pytest.raises(ValueError, match="'experts' matches no weight"):
        describe(run, small_cache, lambda line: None)
    shielded = replace(small_run, stages=(replace(small_run.stages[0], shield=GradientShielding()),))
    with pytest.raises(ValueError, match="shields the shared expert, of which nothing trains"):
        describe(shielded, small_cache, lambda line: None)


def test_the_command(small_run: RunConfig, small_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(configs.dump(small_run))
    words = ["train", str(tmp_path / "run.yaml"), "--dry-run", "--output", str(tmp_path / "out"), "--cache", str(small_cache)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "memory of one process" in printed
    assert "optimizer" in printed.splitlines()[-1]
    assert not (tmp_path / "out").exists()
