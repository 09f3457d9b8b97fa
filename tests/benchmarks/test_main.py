"""``make bench`` fails where a goal that was met is missed, and only there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.record import Result, Row


def result(value: float, met: bool) -> Result:
    return Result("layers", "C1", {}, [Row("ours / dense", value, goal="at most 1.12", met=met), Row("ours / eager", 0.9)], {})


def test_a_goal_that_is_lost_fails_until_it_is_met_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for value, met, status in ((1.2, False, 0), (1.1, True, 0), (1.3, False, 1), (1.3, False, 1), (1.05, True, 0)):
        assert main([lambda value=value, met=met: result(value, met)], tmp_path) == status
        said = capsys.readouterr().out
        assert f"at most 1.12: {'met' if met else 'missed'}" in said
        assert ("layers: ours / dense is 1.300, goal at most 1.12" in said) == bool(status)
        stored = json.loads((tmp_path / "layers.json").read_text())["rows"][0]
        assert stored["value"] == (1.1 if status else value)
