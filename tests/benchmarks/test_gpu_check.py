"""The GPU check: limits, crashes and kills lose nothing that was found, and all parts run at tiny sizes on a CPU."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check import bundle, check, correct, findings, runner
from benchmarks.gpu_check.check import Check
from benchmarks.gpu_check.findings import FILE, SUMMARY, Findings, Goal
from benchmarks.gpu_check.runner import Options, Part, run_parts
from benchmarks.gpu_check.sizes import SIZES, TINY, packed, training_batch
from benchmarks.tiny import model_of, processor_of
from published import PRO_1B, PRO_7B
from unidecouple.batch import Task

ROOT = Path(__file__).parents[2]


def found(folder: Path) -> list[dict[str, Any]]:
    return list(findings.read(folder / FILE))


def quick(one: Check) -> None:
    one.add("first", 2.0, "s", Goal(1.0, always=True))


def fails(one: Check) -> None:
    quick(one)
    with one.attempt("inner"):
        raise OSError("broken")
    one.add("after", 1.0)


def crashes(one: Check) -> None:
    quick(one)
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(one: Check) -> None:
    """Also starts a process, which must end, too."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    one.add("started", float(child.pid))
    time.sleep(60)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Part]]:
    """Parts of the functions above, which forked processes find by name."""
    module = ModuleType("gpu_check_stubs")
    for function in (quick, fails, crashes, hangs):
        setattr(module, function.__name__, function)
    monkeypatch.setitem(sys.modules, "gpu_check_stubs", module)
    return lambda *names, seconds=30.0: [Part(name, seconds, f"gpu_check_stubs:{name}") for name in names]


def ended(process: int) -> bool:
    """Whether it is gone, or a zombie that only waits to be reaped."""
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_failed_part_stops_no_other(parts: Callable[..., list[Part]], tmp_path: Path) -> None:
    planned = [*parts("fails", "crashes"), *parts("hangs", seconds=1.0), *parts("quick")]
    assert run_parts(planned, Options(tmp_path, "cpu")) == 1
    rows = found(tmp_path)
    errors = {row["name"]: row["error"] for row in rows if "error" in row}
    assert errors["inner"] == "OSError: broken"
    assert errors["fails"].startswith("exit code 1")
    assert errors["crashes"] == "ended by signal 9"
    assert errors["hangs"].startswith("ended at its limit of 1 s")
    assert [row["part"] for row in rows if row["name"] == "first"] == ["fails", "crashes", "quick"]
    assert "after" in {row["name"] for row in rows}
    assert {row["name"] for row in rows if row["part"] == "main" and "error" not in row} == {"quick"}
    wait_for(lambda: ended(next(int(row["value"]) for row in rows if row["name"] == "started")))
    page = (tmp_path / SUMMARY).read_text()
    assert "| quick | first | 2 s | at least 1: met |" in page
    assert "- crashes, crashes: ended by signal 9" not in page
    assert "- main, crashes: ended by signal 9" in page


def test_a_part_without_time_is_left_out(parts: Callable[..., list[Part]], tmp_path: Path) -> None:
    planned = [*parts("quick", seconds=1000.0), *parts("fails", seconds=1.0)]
    assert run_parts(planned, Options(tmp_path, "cpu", budget=60)) == 1
    assert [row["error"] for row in found(tmp_path) if row["name"] == "quick: left out"] == ["60 of its 1000 s were left"]
    assert "after" in {row["name"] for row in found(tmp_path)}


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGKILL, None), (None, "the limit of the whole check")]
)
def test_killed_findings_are_kept(parts: Callable[..., list[Part]], tmp_path: Path, number: int | None, said: str | None) -> None:
    options = Options(tmp_path, "cpu", limit=600 if number else 1)
    process = multiprocessing.get_context("fork").Process(target=run_parts, args=(parts("quick", "hangs", "quick"), options))
    process.start()
    wait_for(lambda: any(row["name"] == "started" for row in found(tmp_path)))
    child = next(int(row["value"]) for row in found(tmp_path) if row["name"] == "started")
    if number is not None:
        os.kill(process.pid or 0, number)
    if said is None:  # nobody is left to end the part
        wait_for(lambda: ended(process.pid or 0))
        os.killpg(os.getpgid(child), signal.SIGKILL)
    process.join(30)
    assert process.exitcode is not None
    rows = found(tmp_path)
    assert [row["name"] for row in rows][:3] == ["first", "quick", "started"]
    assert "first | 2 s" in (tmp_path / SUMMARY).read_text()
    assert said is None or rows[-1] == {"part": "main", "name": "stopped", "error": said}
    wait_for(lambda: ended(child))


def test_a_cut_line_is_skipped(tmp_path: Path) -> None:
    Findings(tmp_path / FILE, "one", real=True).add("speed", 0.5, "s", Goal(0.5, at_most=True), more=[1])
    with (tmp_path / FILE).open("a") as file:
        file.write('{"part": "one", "na')
    assert found(tmp_path) == [
        {"part": "one", "name": "speed", "value": 0.5, "unit": "s", "goal": "at most 0.5", "met": True, "more": [1]}
    ]


def test_goals(tmp_path: Path) -> None:
    assert Goal(10).met(10)
    assert not Goal(10).met(9.99)
    assert not Goal(10, at_most=True).met(10.01)
    assert not any(Goal(1, at_most=way).met(float("nan")) for way in (False, True))
    for goal in (Goal(1), Goal(1, always=True)):
        Findings(tmp_path / FILE, "one", real=False).add("tiny", 2.0, "s", goal)
    assert [row["met"] for row in found(tmp_path)] == [None, True]


def test_a_step_that_is_not_repeated_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def once(step: Callable[[], None]) -> Callable[[], None]:
        step()
        return lambda: None

    monkeypatch.setattr(check, "again", once)
    with torch.no_grad():
        correct._loops(Check(Findings(tmp_path / FILE, "one", real=False), "cpu", tiny=True), {})
    assert [row["met"] for row in found(tmp_path)] == [False] * 3


def test_packed_sequences_stay_apart() -> None:
    processor = processor_of(TINY)
    model = correct._lively(model_of(processor, TINY))
    batch = training_batch(model.config, 2, torch.device("cpu"))[1]
    row = packed(batch, 5)
    assert row.input_ids.shape == (1, batch.input_ids.numel() + 5)
    rows = (batch, row, replace(row, position_ids=None))
    with torch.no_grad():
        losses = [float(model(batch=(one,)).loss(Task.T2I)) for one in rows]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert abs(losses[2] - losses[0]) > 1e-3


@pytest.mark.parametrize(("name", "published"), [("1B", PRO_1B), ("7B", PRO_7B)])
def test_the_sizes_are_janus_pros(name: str, published: object) -> None:
    size = SIZES[name]
    mine = (size.hidden_size, size.intermediate_size, size.num_hidden_layers, size.num_attention_heads, size.codes, size.image_size)
    assert mine == tuple(getattr(published, key) for key in ("hidden", "inner", "layers", "heads", "codes", "image"))
    assert size.num_image_tokens == 576


def test_the_budget_is_less_than_nine_minutes() -> None:
    options = Options(Path())
    assert sum(part.seconds for part in command.PARTS) <= 1.1 * options.budget  # parts seldom take all of their time
    assert options.budget <= 540 < options.limit <= 590


def test_wheels_are_installed_for_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "carried_along-1.0-py3-none-any.whl"
    info = "carried_along-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as out:
        out.writestr("carried_along.py", "PLACE = __file__\n")
        out.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: carried-along\nVersion: 1.0\n")
        out.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        out.writestr(f"{info}/RECORD", "")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "before")
    monkeypatch.setattr("tempfile.mkdtemp", lambda prefix: str(tmp_path / "site"))
    command.add_wheels(tmp_path)
    assert sys.path[0] == str(tmp_path / "site")
    assert os.environ["PYTHONPATH"] == os.pathsep.join([sys.path[0], "before"])
    assert (tmp_path / "site" / "carried_along.py").is_file()
    command.add_wheels(tmp_path)  # the same version is installed now
    assert sys.path.count(sys.path[0]) == 1


def test_a_bundle_has_what_the_check_needs(tmp_path: Path) -> None:
    files = {path.relative_to(ROOT).as_posix() for path in bundle.sources()}
    assert files >= {"Makefile", "pyproject.toml", "benchmarks/image_loop.py", "tests/conftest.py", "unidecouple/run.py"}
    assert not any(name.startswith(("docs/", "results/", ".venv")) for name in files)
    with zipfile.ZipFile(bundle.repack_icons(tmp_path)) as wheel:
        names = set(wheel.namelist())
    from unidecouple.world.catalog import CODE_POINTS

    assert all(any(name.endswith(f"/{code}.svg") for name in names) for code in CODE_POINTS.values())
    assert sum(name.endswith(".dist-info/RECORD") for name in names) == 1


def test_a_bundle_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bundle, "MOST", 10)
    with pytest.raises(ValueError, match=r"bytes, which is more than 10"):
        bundle.pack([ROOT / "Makefile"], tmp_path / "bundle.tar.gz")


def test_a_cpu_needs_tiny_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--device", "cpu"])
    assert "add --tiny" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    """The first part is started as on a GPU, by spawning, and no other follows."""
    words = [sys.executable, "-m", "benchmarks.gpu_check", "--output", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == runner.NO_DEVICE
    rows = found(next(tmp_path.iterdir()))
    assert [(row["part"], row["name"]) for row in rows] == [("main", "ceilings")]
    assert "torch finds no CUDA device; --tiny --device cpu" in done.stdout


@pytest.mark.slow
def test_all_parts_at_tiny_sizes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "ENVIRONMENT", {})
    code = command.main(["--tiny", "--device", "cpu", "--output", str(tmp_path)])
    folder = next(tmp_path.iterdir())
    rows = found(folder)
    assert [row for row in rows if "error" in row] == []
    assert code == 0
    assert {row["name"] for row in rows if row["part"] == "main"} == {part.name for part in command.PARTS}
    assert {row["part"] for row in rows} == {"main", *(part.name for part in command.PARTS)}
    assert {json.dumps(row) for row in rows if row.get("met") is False} == set()
    assert sum(row.get("met") is True for row in rows) >= 15
    for goal in ("G3", "G4", "G6", "G7", "G1", "G2"):
        assert any(row["name"].startswith(goal) and row.get("goal") for row in rows), goal
    assert sorted(path.name for path in folder.iterdir()) == sorted((FILE, runner.LOG, SUMMARY))
