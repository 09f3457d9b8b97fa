"""Processes that share one run, forked from the test's own: torch is loaded there already, which torchrun's would each do anew."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import socket
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from small_runs import NOT_SCORED
from unidecouple.convert.load import load
from unidecouple.run import RunConfig
from unidecouple.train import launch
from unidecouple.train.train import train
from unidecouple.world.scoring import Scorer

Fault = Callable[[pytest.MonkeyPatch], None]

_END_TIMEOUT = 120
"""Seconds in which survivors must have ended on a loaded machine; they take one."""
_JOIN_TIMEOUT = timedelta(seconds=60)
"""For processes to find each other: long, since a loaded machine starts them late; no test waits it out."""


def start_ranks(
    size: int, config: RunConfig, folder: Path, cache: Path, faults: Mapping[int, Fault] | None = None, started: int | None = None
) -> list[BaseProcess]:
    """Start ``config`` on ``size`` processes as torchrun would.

    Args:
        faults: what goes wrong in a rank.
        started: how many of the ``size`` processes are started; None: all.
    """
    works = [partial(_train, config, folder, cache, (faults or {}).get(rank)) for rank in range(size)]
    return fork_ranks(size, works if started is None else works[:started])


def fork_ranks(size: int, works: Sequence[Callable[[], object]]) -> list[BaseProcess]:
    """Start a process for each of ``works``, the ranks from 0 of ``size``, with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks: list[BaseProcess] = [context.Process(target=_rank, args=(rank, size, port, work)) for rank, work in enumerate(works)]
    _warm_up()
    gc.freeze()  # else each rank's collector walks, and so copies, what it shares with this process
    for process in ranks:
        process.start()
    gc.unfreeze()
    return ranks


@functools.cache
def _warm_up() -> None:
    """Load a model, for which transformers builds tables of names: seconds that each rank would spend anew."""
    load("understanding")


def _rank(rank: int, size: int, port: int, work: Callable[[], object]) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    warnings.simplefilter("default")  # as for the command: torch's on gradients' strides are no errors
    if work():
        os._exit(1)


def _train(config: RunConfig, folder: Path, cache: Path, fault: Fault | None) -> bool:
    """Train without scores; whether it failed. The error goes to a file, as the command's last line would to standard error."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch, "_JOINING", _JOIN_TIMEOUT)
            patch.setattr(Scorer, "test", NOT_SCORED)
            if fault is not None:
                fault(patch)
            train(config, folder, cache, lambda line: None, threading.Event())
    except Exception as error:  # noqa: BLE001
        rank = os.environ["RANK"]
        (folder.parent / f"{folder.name}-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        return True
    return False


def exit_codes(ranks: list[BaseProcess], timeout: float = _END_TIMEOUT) -> list[int | None]:
    """Wait for all ``ranks``; one that has not ended in ``timeout`` seconds is a failure."""
    for process in ranks:
        process.join(timeout)
    stuck = [rank for rank, process in enumerate(ranks) if process.is_alive()]
    for process in ranks:
        process.kill()
        process.join()
    assert not stuck, f"ranks {stuck} hang"
    return [process.exitcode for process in ranks]


def errors(folder: Path) -> dict[int, str]:
    """The error of each rank of the run in ``folder`` that raised one."""
    return {
        int(path.stem.rpartition("-")[2]): path.read_text() for path in folder.parent.glob(f"{folder.name}-*.txt") if path.is_file()
    }


def train_on_ranks(size: int, config: RunConfig, folder: Path, cache: Path) -> None:
    """Run ``config`` on ``size`` processes to its end."""
    codes = exit_codes(start_ranks(size, config, folder, cache))
    assert codes == [0] * size, errors(folder)


def assert_close_weights(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], learning_rate: float = 1e-2, run: str = ""
) -> None:
    """Hold the weights of two runs equal whose sums were in another order.

    AdamW divides by the size of a weight's own gradient, so that order shows in a weight that has almost none: one in a thousand
    may differ by more than rounding, none by a tenth of a step of ``learning_rate``.
    """
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        far = ~torch.isclose(found[name], weight, atol=2e-5, rtol=1e-4)
        assert far.sum() <= max(1, weight.numel() / 1000), f"{run} {name}"
        assert (found[name] - weight).abs().max() < learning_rate / 10, f"{run} {name}"
