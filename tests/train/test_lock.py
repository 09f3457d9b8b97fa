"""One process at a time trains in a folder, and a killed one frees it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

from unidecouple.train.lock import run_lock

HOLD = """
import sys, time
from pathlib import Path
from unidecouple.train.lock import run_lock
with run_lock(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_waits_until_the_first_is_gone(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    said: list[str] = []
    entered = threading.Event()

    def enter() -> None:
        with run_lock(tmp_path, said.append):
            entered.set()

    waiting = threading.Thread(target=enter)
    waiting.start()
    while not said:
        time.sleep(0.01)
    assert not entered.wait(0.1)
    other.kill()
    assert entered.wait(10)
    waiting.join()
    other.wait()
    other.stdout.close()
    assert said == [f"another process trains in {tmp_path}; waiting for its end"]


def test_a_free_folder_is_made_and_taken_at_once(tmp_path: Path) -> None:
    for _ in range(2):
        with run_lock(tmp_path / "new", lambda line: (_ for _ in ()).throw(AssertionError(line))):
            assert (tmp_path / "new").is_dir()
