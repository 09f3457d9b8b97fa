"""The guide's Slurm scripts: their variables are Slurm's, and a shell makes the documented command of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "many-gpus.md").read_text(encoding="utf-8")
SCRIPTS = [
    re.sub(r"^    ", "", block, flags=re.MULTILINE)
    for block in re.findall(r"(?:^    .*\n)+", PAGE, re.MULTILINE)
    if "SBATCH" in block
]
JOB = {"SLURM_JOB_NODELIST": "gpu[03-04]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "4711"}
"""What sbatch sets for the first script (man sbatch, OUTPUT ENVIRONMENT VARIABLES)."""


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """Commands that print how they were called; scontrol lists two nodes."""
    for name, body in (
        ("scontrol", 'test "$*" = "show hostnames gpu[03-04]" && printf "gpu03\\ngpu04\\n"'),
        ("srun", 'printf "%s|" "$@"'),
        ("unidecouple", 'echo "$@"'),
    ):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    return tmp_path


def run(script: str, folder: Path, variables: dict[str, str]) -> str:
    environ = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", **variables}
    shell = shutil.which("bash")
    assert shell is not None
    done = subprocess.run([shell, "-eu", "-c", script], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_training_meets_at_the_first_node(bin_folder: Path) -> None:
    assert set(re.findall(r"\$\{?(SLURM_\w+)", SCRIPTS[0])) == set(JOB)
    words = run(SCRIPTS[0], bin_folder, JOB).split("|")[:-1]
    assert words[:11] == [
        *("torchrun", "--nnodes", "2", "--nproc_per_node", "8", "--rdzv_id", "4711", "--rdzv_backend", "c10d"),
        *("--rdzv_endpoint", "gpu03:29500"),
    ]
    assert words[11:14] == ["-m", "unidecouple", "train"]
    assert "--ntasks-per-node=1" in SCRIPTS[0]  # one torchrun per node


def test_an_array_runs_the_commands_that_divide_their_work(bin_folder: Path) -> None:
    lines = run(SCRIPTS[1], bin_folder, {}).splitlines()
    assert [line.split()[0] for line in lines] == ["data", "infer", "eval"]
    assert re.search(r"^#SBATCH --array=0-\d+$", SCRIPTS[1], re.MULTILINE)
