"""The full-size smoke test at a reduced size, as its make target starts it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("smoke.py")


@pytest.mark.slow
def test_it_runs_in_small(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(SCRIPT), str(tmp_path / "run"), "--size", "tiny", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    for name in ("written in deepseek-ai's layout", "converted to a mixture", "2 joint steps", "answered", "drawn"):
        assert re.search(rf"^{re.escape(name)}: [\d.]+ s, ", done.stdout, re.MULTILINE), name
    assert "upcycled to ta_moe" in done.stdout
    losses = [float(loss) for loss in re.findall(r"'t2i': ([\d.]+)", done.stdout)]
    assert len(losses) == 2
    assert losses[0] != losses[1]  # in between the weights moved
    assert list((tmp_path / "run").iterdir()) == []


def test_the_target_names_it() -> None:
    assert "tests/big/smoke.py" in (SCRIPT.parents[2] / "Makefile").read_text(encoding="utf-8")
