"""Commands of a comparison in processes of their own, forked from one that has imported torch: each import takes seconds."""

from __future__ import annotations

import io
import multiprocessing
import os
import runpy
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess

from unidecouple import plugins

_FORKS = "forkserver" in multiprocessing.get_all_start_methods()
"""Windows cannot fork: there each process imports for itself."""
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Processes:
    """Commands that run now, each with one thread.

    Ctrl-C in a terminal reaches them by itself, the SIGTERM of a scheduler does not.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[BaseProcess] = []
        self._stopped = False
        self._context: ForkServerContext | SpawnContext = (
            multiprocessing.get_context("forkserver") if _FORKS else multiprocessing.get_context("spawn")
        )
        if _FORKS:
            sources = (target.partition(":")[0] for target in plugins.DATA_SOURCES.values())
            self._context.set_forkserver_preload(["unidecouple.train.train", *sources])
            before = dict(os.environ)
            os.environ.update(_ONE_THREAD)  # libraries read it as they are loaded
            forkserver.ensure_running()
            os.environ.clear()
            os.environ.update(before)

    def run(self, words: Sequence[str], line: Callable[[str], None]) -> int:
        """Run ``unidecouple WORDS``, and call ``line`` with each line that it prints.

        Returns:
            The exit code of the command, minus the number of the signal that ended it, or 1 after ``stop``.
        """
        receiver, sender = self._context.Pipe(duplex=False)
        with receiver:
            with self._lock, sender:
                if self._stopped:
                    return 1
                process = self._context.Process(target=_command, args=(list(words), {**os.environ, **_ONE_THREAD}, sender))
                process.start()
                self._running.append(process)
            with os.fdopen(receiver.fileno(), encoding="utf-8", errors="replace", closefd=False) as output:
                for text in output:
                    line(text)
            process.join()
        assert process.exitcode is not None
        return process.exitcode

    def stop(self) -> None:
        """Ask all that run to save and to end; start no more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()  # does nothing to one that has ended


def _command(words: list[str], environment: dict[str, str], sender: Connection) -> None:
    """The process: ``sender`` becomes its standard output and error."""
    os.environ.clear()
    os.environ.update(environment)
    for number in (1, 2):
        os.dup2(sender.fileno(), number)
    sender.close()
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(n, "w", closefd=False), "utf-8", line_buffering=True) for n in (1, 2))
    import torch

    torch.set_num_threads(1)
    sys.argv = ["unidecouple", *words]
    runpy.run_module("unidecouple", run_name="__main__")
