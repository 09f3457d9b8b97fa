"""Two processes and what may befall them: kill -9 of one or both, a full disk, broken files. Nothing hangs, nothing is lost."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file

from small_runs import APART_THEN_JOINT, Run
from unidecouple.convert.load import load
from unidecouple.methods.structure import TaskAwareMoE
from unidecouple.run import RunConfig
from unidecouple.train import launch, parallel, sharded
from unidecouple.train.checkpoint import all_checkpoints
from unidecouple.train.train import train

KILLS = 4
PATIENCE = 120
"""Seconds in which survivors must have ended on a loaded machine; they take one."""
JOINING = timedelta(seconds=60)
"""For processes to find each other: long, since a loaded machine starts them late; none of these tests waits it out."""
Fault = Callable[[pytest.MonkeyPatch], None]
Kind = Literal["ddp", "fsdp"]


@pytest.fixture(params=["ddp", "fsdp"])
def config(request: pytest.FixtureRequest, small_run: RunConfig) -> RunConfig:
    """A checkpoint every step, so that about half of the time goes into saves."""
    kind: Kind = request.param
    data = replace(small_run.data, t2i_batch_size=4, mmu_batch_size=2, router_aux_samples=2)
    stages = replace(small_run, structure=TaskAwareMoE(), data=data, stages=APART_THEN_JOINT)
    return replace(stages, save_steps=1, save_total_limit=2, max_steps=8, parallel=kind, ema_decay=0.5, report_to=())


def member(rank: int, port: int, config: RunConfig, folder: Path, cache: Path, fault: Fault | None) -> None:
    """One of two processes; what it raises goes to a file, as the command line's last line would."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch, "_JOINING", JOINING)
            if fault is not None:
                fault(patch)
            train(config, folder, cache, lambda line: None, threading.Event())
    except Exception as error:  # noqa: BLE001
        (folder.parent / f"{folder.name}-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        os._exit(1)


def start(
    config: RunConfig, folder: Path, cache: Path, faults: dict[int, Fault] | None = None, alone: bool = False
) -> list[BaseProcess]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # torch is loaded there already
    pair: list[BaseProcess] = []
    for rank in range(1 if alone else 2):
        fault = (faults or {}).get(rank)
        pair.append(context.Process(target=member, args=(rank, port, config, folder, cache, fault)))
    for process in pair:
        process.start()
    return pair


def finish(pair: list[BaseProcess]) -> list[int | None]:
    """Exit codes; a process that has not ended within ``PATIENCE`` is a failure."""
    for process in pair:
        process.join(PATIENCE)
    stuck = [rank for rank, process in enumerate(pair) if process.is_alive()]
    for process in pair:
        process.kill()
        process.join()
    assert not stuck, f"ranks {stuck} hang"
    return [process.exitcode for process in pair]


def said(folder: Path) -> dict[int, str]:
    return {rank: path.read_text() for rank in range(2) if (path := folder.parent / f"{folder.name}-{rank}.txt").is_file()}


def losses(folder: Path) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss/mmu"], line["loss/t2i"]) for line in lines]


def same(folder: Path, whole: Path) -> None:
    assert losses(folder) == losses(whole)
    assert not [*folder.glob(".checkpoint-*")]
    for file in ("model.safetensors", "ema.safetensors"):
        one, other = (load_file(all_checkpoints(path)[-1] / file) for path in (folder, whole))
        assert [name for name in other if not torch.equal(one[name], other[name])] == []


def test_a_process_whose_peer_never_starts_gives_up(small_run: RunConfig, small_cache: Path, tmp_path: Path) -> None:
    def soon(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(launch, "_JOINING", timedelta(seconds=1))

    pair = start(small_run, tmp_path / "run", small_cache, dict.fromkeys(range(2), soon), alone=True)
    assert finish(pair) == [1]
    assert said(tmp_path / "run")[0].startswith("LostProcessError: another process of this run ended or does not answer (")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_killed_processes_lose_nothing(config: RunConfig, small_cache: Path, tmp_path: Path) -> None:
    assert finish(start(config, tmp_path / "whole", small_cache)) == [0, 0]
    folder, rng = tmp_path / "killed", random.Random(1)
    for number in range(KILLS):
        pair = start(config, folder, small_cache)
        before = len([*folder.glob("checkpoint-*")]) and int(all_checkpoints(folder)[-1].name.split("-")[1])
        until = before + rng.choice((1, 1, 2))
        while all(p.is_alive() for p in pair) and not any(int(p.name.split("-")[1]) >= until for p in all_checkpoints(folder)):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.2))
        for process in pair if number % 3 == 2 else [pair[number % 3]]:
            process.kill()
        finish(pair)
        for path in all_checkpoints(folder):
            load(str(path))
    assert any("LostProcessError: another process of this run ended" in text for text in said(folder).values())
    assert finish(start(config, folder, small_cache)) == [0, 0]
    same(folder, tmp_path / "whole")


def full_disk(kind: str) -> Fault:
    """Writing tensors fails from the second checkpoint on, as on a disk that has filled up."""

    def fault(patch: pytest.MonkeyPatch) -> None:
        owner, name = (sharded.HuggingFaceStorageWriter, "write_data") if kind == "fsdp" else (parallel, "save_file")
        whole, calls = getattr(owner, name), [0]

        def write(*given: object, **named: object) -> object:
            calls[0] += 1
            if calls[0] > 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            return whole(*given, **named)

        patch.setattr(owner, name, write)

    return fault


@pytest.mark.slow
def test_a_full_disk_of_one_process(config: RunConfig, small_cache: Path, tmp_path: Path) -> None:
    config = replace(config, max_steps=6)
    rank = 1 if config.parallel == "fsdp" else 0  # with ddp the first process alone writes
    folder = tmp_path / "full"
    assert finish(start(config, folder, small_cache, {rank: full_disk(config.parallel)})) == [1, 1]
    assert said(folder)[0].startswith("StorageError: could not write")
    assert "no space left" in said(folder)[0]
    assert all_checkpoints(folder), "the checkpoint before is kept"
    assert not [*folder.glob(".checkpoint-*")]
    assert finish(start(config, folder, small_cache)) == [0, 0]
    assert [line[0] for line in losses(folder)] == [*range(1, 7)]


@pytest.mark.slow
def test_broken_files_of_a_checkpoint_stop_every_process(config: RunConfig, small_cache: Path, tmp_path: Path) -> None:
    config, folder = replace(config, max_steps=6), tmp_path / "broken"
    pair = start(config, folder, small_cache)
    while pair[0].is_alive() and len(all_checkpoints(folder)) < 2:
        time.sleep(0.002)
    for process in pair:
        process.kill()
    finish(pair)
    assert all_checkpoints(folder), said(folder)
    newest = all_checkpoints(folder)[-1]
    for name in ("model.safetensors", "optimizer.safetensors"):
        whole = (newest / name).read_bytes()
        (newest / name).write_bytes(whole[: len(whole) // 2])
        assert finish(start(config, folder, small_cache)) == [1, 1]
        assert "ValueError" in said(folder)[0]
        assert str(newest) in said(folder)[0]
        (newest / name).write_bytes(whole)
    (newest / "optimizer.safetensors").unlink()
    assert finish(start(config, folder, small_cache)) == [1, 1]
    assert all(f"{newest / 'optimizer.safetensors'} is missing or broken" in text for text in said(folder).values())


@pytest.mark.parametrize("name", ["optimizer.safetensors", "ema.safetensors", "trainer_state.json"])
@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_a_broken_checkpoint_is_named_and_the_one_before_goes_on(
    name: str, damage: str, small_run: RunConfig, run: Run, tmp_path: Path
) -> None:
    config = replace(small_run, save_steps=1, save_total_limit=9, max_steps=4, ema_decay=0.5)
    assert not run(config, tmp_path, stop_after=3)
    broken = all_checkpoints(tmp_path)[-1] / name
    whole = broken.read_bytes()
    broken.unlink() if damage == "missing" else broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{name} is missing or broken .* Delete .*{broken.parent.name}"):
        run(config, tmp_path)
    for path in sorted(broken.parent.iterdir()):
        path.unlink()
    broken.parent.rmdir()
    assert run(config, tmp_path)
    assert [line[0] for line in losses(tmp_path)] == [1, 2, 3, 4]
