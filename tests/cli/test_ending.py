"""How commands end: exit codes of signals, one line for errors nobody expected, a traceback in a file."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from unidecouple.cli import ending, main
from unidecouple.train.stop_request import InterruptedRunError, StopRequest, deferred_signals

WORDS = ["report", "folder"]


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*given: object) -> None:
        raise error

    monkeypatch.setattr("unidecouple.report.write_report", fail)


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), RecursionError("deep"), AssertionError(), UnicodeDecodeError("utf-8", b"a", 0, 1, "x"), ZeroDivisionError()],
    ids=repr,
)
def test_an_unexpected_error_is_one_line_and_a_file(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    raising(monkeypatch, error)
    assert main(WORDS) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith(f"unidecouple: unexpected error: {type(error).__name__}")
    assert "report it" in line
    found = re.search(r"traceback: ([^)]+)\)", line)
    assert found is not None
    assert "Traceback (most recent call last)" in Path(found[1]).read_text()


def test_the_traceback_goes_to_an_output_folder_in_use_and_to_the_screen_if_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv(ending.DEBUG, "1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for used in (False, True):
        output = tmp_path / str(used)
        output.mkdir()
        if used:
            (output / "run.yaml").touch()

        def fail() -> int:
            raise KeyError("x")

        assert ending.run_command(fail, StopRequest(), lambda output=output: output) == 1
        assert len([*output.glob("unidecouple-error-*.log")]) == used
        assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 1")])
def test_no_memory_is_named(error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    raising(monkeypatch, error)
    assert main(WORDS) == 1
    line = capsys.readouterr().err
    assert line.startswith("unidecouple: out of memory (traceback: ")
    assert line.count("\n") == 1
    Path(line.partition("traceback: ")[2].partition(")")[0]).unlink()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_any_command(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even where a library makes another error of it; and the handlers of before are back."""
    found = signal.getsignal(number)
    before = signal.SIG_DFL if found == signal.SIG_IGN else found  # under nohup SIGHUP stays ignored
    signal.signal(number, before)
    for caught in (False, True):

        def fail(*given: object, caught: bool = caught) -> None:
            try:
                os.kill(os.getpid(), number)
                threading.Event().wait(5)
            except KeyboardInterrupt:
                if caught:
                    raise ImportError("a part of numpy") from None
                raise

        monkeypatch.setattr("unidecouple.report.write_report", fail)
        assert main(WORDS) == code
        assert capsys.readouterr().err.startswith("unidecouple: interrupted")
    assert signal.getsignal(number) is before
    signal.signal(number, found)


def test_a_deferred_signal_only_sets_the_event(capfd: pytest.CaptureFixture[str]) -> None:
    stop = StopRequest()
    with stop.on_signals():
        with deferred_signals(stop):
            for _ in range(3):  # schedulers may send it to each process and each step
                os.kill(os.getpid(), signal.SIGTERM)
            assert stop.is_set()
        assert stop.exit_code == 143
    assert capfd.readouterr().err == "unidecouple: SIGTERM: saving after this step (Ctrl-C again ends at once)\n"


@pytest.mark.parametrize(("torchrun", "code"), [({}, 130), ({"TORCHELASTIC_RUN_ID": "x"}, 7)])
def test_a_second_ctrl_c_ends_at_once_unless_torchrun_passed_it_on(torchrun: dict[str, str], code: int) -> None:
    twice = """
import os, signal
from unidecouple.train.stop_request import StopRequest, deferred_signals
stop = StopRequest()
with stop.on_signals(), deferred_signals(stop):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    os._exit(7)
"""
    done = subprocess.run([sys.executable, "-c", twice], env=os.environ | torchrun, check=False, capture_output=True, timeout=60)
    assert done.returncode == code


def test_an_interrupted_run_says_that_it_resumes(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise InterruptedRunError("stopped after step 3 of 9; saved in run")

    assert ending.run_command(fail, StopRequest(), lambda: None) == 143
    assert capsys.readouterr().err == "unidecouple: stopped after step 3 of 9; saved in run. The same command resumes it\n"


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_reader_that_is_gone_is_no_error(size: int) -> None:
    """Found when the last bytes are flushed, or before."""
    code = f"""
import sys
from unidecouple.cli.ending import run_command
from unidecouple.train.stop_request import StopRequest
sys.exit(run_command(lambda: int(bool(print("x" * {size}))), StopRequest(), lambda: None))
"""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")
