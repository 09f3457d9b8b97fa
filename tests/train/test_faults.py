"""Two processes and what may befall them: kill -9 of one or both, a full disk, broken files. Nothing hangs, nothing is lost."""

from __future__ import annotations

import errno
import json
import random
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file

from ranks import Fault, errors, exit_codes, start_ranks
from small_runs import APART_THEN_JOINT, Run
from unidecouple.convert.load import load
from unidecouple.convert.stored import all_checkpoints
from unidecouple.methods.structure import TaskAwareMoE
from unidecouple.run import RunConfig
from unidecouple.train import launch, parallel, sharded

KILLS = 3
Kind = Literal["ddp", "fsdp"]


@pytest.fixture(params=["ddp", "fsdp"])
def config(request: pytest.FixtureRequest, small_run: RunConfig) -> RunConfig:
    """A checkpoint every step, so that about half of the time goes into saves."""
    kind: Kind = request.param
    data = replace(small_run.data, t2i_batch_size=4, mmu_batch_size=2, router_aux_samples=2)
    stages = replace(small_run, structure=TaskAwareMoE(), data=data, stages=APART_THEN_JOINT)
    return replace(stages, save_steps=1, save_total_limit=2, max_steps=6, parallel=kind, ema_decay=0.5, report_to=())


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

    pair = start_ranks(2, small_run, tmp_path / "run", small_cache, dict.fromkeys(range(2), soon), started=1)
    assert exit_codes(pair) == [1]
    assert errors(tmp_path / "run")[0].startswith("LostProcessError: another process of this run ended or does not answer (")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_killed_processes_lose_nothing(config: RunConfig, small_cache: Path, tmp_path: Path) -> None:
    assert exit_codes(start_ranks(2, config, tmp_path / "whole", small_cache)) == [0, 0]
    folder, rng = tmp_path / "killed", random.Random(1)  # each kill comes after one more checkpoint
    for number in range(KILLS):
        pair = start_ranks(2, config, folder, small_cache)
        before = len([*folder.glob("checkpoint-*")]) and int(all_checkpoints(folder)[-1].name.split("-")[1])
        until = before + 1
        while all(p.is_alive() for p in pair) and not any(int(p.name.split("-")[1]) >= until for p in all_checkpoints(folder)):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.2))
        for process in pair if number % 3 == 2 else [pair[number % 3]]:
            process.kill()
        exit_codes(pair)
        for path in all_checkpoints(folder):
            load(str(path))
    assert any("LostProcessError: another process of this run ended" in text for text in errors(folder).values())
    assert exit_codes(start_ranks(2, config, folder, small_cache)) == [0, 0]
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
    config = replace(config, max_steps=4)
    rank = 1 if config.parallel == "fsdp" else 0  # with ddp the first process alone writes
    folder = tmp_path / "full"
    assert exit_codes(start_ranks(2, config, folder, small_cache, {rank: full_disk(config.parallel)})) == [1, 1]
    assert errors(folder)[0].startswith("StorageError: could not write")
    assert "no space left" in errors(folder)[0]
    assert all_checkpoints(folder), "the checkpoint before is kept"
    assert not [*folder.glob(".checkpoint-*")]
    assert exit_codes(start_ranks(2, config, folder, small_cache)) == [0, 0]
    assert [line[0] for line in losses(folder)] == [1, 2, 3, 4]


@pytest.mark.slow
def test_broken_files_of_a_checkpoint_stop_every_process(config: RunConfig, small_cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    pair = start_ranks(2, config, folder, small_cache)
    while pair[0].is_alive() and len(all_checkpoints(folder)) < 2:
        time.sleep(0.002)
    for process in pair:
        process.kill()
    exit_codes(pair)
    assert all_checkpoints(folder), errors(folder)
    newest = all_checkpoints(folder)[-1]
    for name in ("model.safetensors", "optimizer.safetensors"):
        whole = (newest / name).read_bytes()
        (newest / name).write_bytes(whole[: len(whole) // 2])
        assert exit_codes(start_ranks(2, config, folder, small_cache)) == [1, 1]
        assert "ValueError" in errors(folder)[0]
        assert str(newest) in errors(folder)[0]
        (newest / name).write_bytes(whole)
    (newest / "optimizer.safetensors").unlink()
    assert exit_codes(start_ranks(2, config, folder, small_cache)) == [1, 1]
    assert all(f"{newest / 'optimizer.safetensors'} is missing or broken" in text for text in errors(folder).values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.safetensors", "ema.safetensors", "trainer_state.json"])
@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_a_broken_checkpoint_is_named_and_the_one_before_goes_on(
    name: str, damage: str, small_run: RunConfig, run: Run, run_once: Run, tmp_path: Path
) -> None:
    config = replace(small_run, save_steps=1, save_total_limit=9, max_steps=4, ema_decay=0.5)
    assert not run_once(config, tmp_path, stop_after=3)
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
