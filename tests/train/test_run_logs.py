"""Logs after a kill: a cut last line is dropped and reported, anything else is one error that names the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unidecouple.train.run_logs import METRICS, ROUTING, SCORES, cut_logs_after, read_log

LINES = b"".join(json.dumps({"step": step, "loss/mmu": 0.5}).encode() + b"\n" for step in (1, 2, 3))


@pytest.mark.parametrize(
    "tail", [b'{"step": 4, "lo', b"\0" * 64, b"\xff\xfe\n", b'{"step": "4"}\n', b"[]\n", b"[" * 20_000, b'{"step": true}']
)
def test_a_cut_last_line_is_dropped(tail: bytes, tmp_path: Path) -> None:
    (tmp_path / METRICS).write_bytes(LINES + b"\n" + tail)
    assert [record["step"] for record in read_log(tmp_path / METRICS)] == [1, 2, 3]
    said: list[str] = []
    cut_logs_after(tmp_path, 2, said.append)
    assert said == [f"{tmp_path / METRICS}: dropped its last line, which was cut"]
    assert (tmp_path / METRICS).read_bytes() == b"".join(LINES.splitlines(keepends=True)[:2])
    cut_logs_after(tmp_path, 2, said.append)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("name", "line", "problem"),
    [
        (METRICS, b"x", "no valid JSON"),
        (METRICS, b"3", "no JSON object"),
        (METRICS, b'{"step": 1.5}', "no usable 'step'"),
        (SCORES, b'{"step": 1, "benchmark": "pope", "metric": "accuracy"}', "no usable 'value'"),
        (ROUTING, b'{"step": 1, "layers": {}}', "no usable 'layers'"),
    ],
)
def test_another_line_is_an_error(name: str, line: bytes, problem: str, tmp_path: Path) -> None:
    good = {"step": 2, "benchmark": "pope", "metric": "accuracy", "value": 0.5, "layers": [], "new": None}
    content = b"\n" + line + b"\n" + json.dumps(good).encode() + b"\n"
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}:2: {problem}; delete that line"):
        cut_logs_after(tmp_path, 5, print)
    assert (tmp_path / name).read_bytes() == content


def test_a_log_without_lines_is_deleted(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_bytes(LINES)
    (tmp_path / SCORES).write_bytes(b"")
    cut_logs_after(tmp_path, 0, print)
    assert not list(tmp_path.iterdir())


def test_a_log_without_a_readable_line_is_an_error(tmp_path: Path) -> None:
    """A kill cuts one line, not all of them; before any checkpoint nothing is lost."""
    (tmp_path / SCORES).write_bytes(b"\0" * 500)
    with pytest.raises(ValueError, match="no readable line"):
        cut_logs_after(tmp_path, 2, print)
    cut_logs_after(tmp_path, -1, lambda line: None)
    assert not list(tmp_path.iterdir())
