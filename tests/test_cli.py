"""The command line as a user meets it: instant help, clear errors, exit codes, Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from small_runs import save_small_base
from unidecouple.cli import main

RECIPES = Path(__file__).parents[1] / "recipes"
SMALL_RUN = """
data:
  kind: world
  pairs: 8
  scenes: 8
  t2i_batch_size: 2
  mmu_batch_size: 2
  evaluation: {pope_images: 2, vqa_questions: 2, prompts_per_tag: 2, num_images: 1}
stages: [{train: {attention: 1, generation: 1}}]
evaluation: {eval_steps: 0}
logging_steps: 1
diagnose: false
"""


def test_help_does_not_import_torch() -> None:
    code = "import sys, unidecouple.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "compare" in shown.stdout


def test_recipes_training_pages_and_data_are_read_before_transformers_is_imported() -> None:
    modules = "unidecouple.run, unidecouple.train.train, unidecouple.report.page, unidecouple.data.check"
    code = f"import sys, {modules}\nassert 'transformers' not in sys.modules and 'sympy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_key_offers_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(RECIPES / "base" / "understanding.yaml"), "max_step=3", "--output", str(tmp_path / "run")]) == 1
    assert "max_steps" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_missing_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "run.yaml"
    recipe.write_text("model_name_or_path: nowhere\n" + SMALL_RUN)
    assert main(["train", str(recipe), "--output", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]) == 1
    assert "no checkpoint at 'nowhere'" in capsys.readouterr().err


def test_report_of_nothing_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 1
    assert "results.json" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_small_base(tmp_path / "base")
    recipe = tmp_path / "run.yaml"
    recipe.write_text(f"model_name_or_path: {base}\nmax_steps: 24\nsave_steps: 0\n" + SMALL_RUN)
    words = ["train", str(recipe), "--output", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "unidecouple", *words]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("step 3/"):
            child.send_signal(signal.SIGINT)
            break
    _, stderr = child.communicate(timeout=120)
    assert child.returncode == 130
    assert "resumes" in stderr
    assert list((tmp_path / "run").glob("checkpoint-*"))
    assert main(words) == 0
    assert "resuming from" in capsys.readouterr().out
    assert (tmp_path / "run" / "scores.json").is_file()


def test_the_first_line_of_train_comes_before_torch() -> None:
    """Loading it takes seconds; `train` says at once what it begins."""
    code = """
import builtins, os, sys
from unidecouple.cli import main
def first(*words, **options):
    os.write(1, str(words[0]).encode())
    os._exit(3 if "torch" in sys.modules else 0)
builtins.print = first
main(["train", "--model", "a/b", "--data", "c", "--output", "runs/d"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "loading PyTorch to train a/b; output: runs/d"), done.stderr
