"""Runs a comparison: its jobs in parallel processes, then ``results.json``. Finished runs are not run again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from unidecouple import config as configs
from unidecouple.compare.budget import cells, check
from unidecouple.compare.collect import ERROR, LOG, GridRuns, collect
from unidecouple.compare.done import finished
from unidecouple.compare.elsewhere import import_runs, key_of
from unidecouple.compare.merge import MERGED
from unidecouple.compare.merge import commands as merge_commands
from unidecouple.compare.only import chosen, parse
from unidecouple.compare.plan import Comparison, Job, ancestors, jobs
from unidecouple.compare.processes import Processes
from unidecouple.files import write_json_atomic, write_text_atomic
from unidecouple.train.train import prepare


class ComparisonError(RuntimeError):
    """Some runs failed; the others are kept, and the same command runs the failed ones again."""


@dataclass(frozen=True)
class CompareOptions:
    """How a comparison is run.

    Attributes:
        folder: the comparison's own.
        cache: drawn data.
        workers: runs at a time, each with one thread.
        only: parts of the grid to run, see ``only.parse``; empty is all.
        results: files ``results.json`` of the same grid from elsewhere, see ``elsewhere.import_runs``; their runs are kept.
        command: how this was called, for the record.
    """

    folder: Path
    cache: Path
    workers: int
    only: tuple[str, ...] = ()
    results: tuple[Path, ...] = ()
    command: str = ""


def run_comparison(grid: Comparison, options: CompareOptions) -> Path:
    """Run what is missing of ``grid`` and write ``results.json`` of all that is finished; it lists what is not.

    Returns:
        Path of ``results.json``.

    Raises:
        ValueError: budgets differ, ``only`` names what the grid has not, or the folder or ``results`` hold other runs. Nothing was
            run.
        ComparisonError: a run failed; its log's end is in the message. The others went on, and are in ``results.json``.
    """
    began, folder = time.monotonic(), options.folder
    planned = jobs(grid)
    wanted = {job.folder: job for job in chosen(parse(options.only, planned), planned)}
    print(f"{grid.name}: {len(planned)} runs of {len(grid.variants)} variants; computing what they see and cost", flush=True)
    compared = cells(planned)
    check(grid, compared)
    imported = import_runs(options.results, planned)
    before = {job.folder for job in finished(planned, folder)}
    known = before | {job.folder for job in planned if key_of(job) in imported.runs}
    write_text_atomic(folder / "comparison.yaml", configs.dump(grid))
    # of the ancestors the weights are needed, and results have none
    known -= {parent for place, job in wanted.items() if place not in known for parent in ancestors(job, planned, before)}
    waiting = sorted((job for place, job in wanted.items() if place not in known), key=expected_work, reverse=True)
    done = len(wanted) - len(waiting)
    print(f"{grid.name}: {len(wanted)} runs, {done} of them done before, {options.workers} at a time", flush=True)
    drawing = [job for job in waiting if job.config.data.GENERATED and job.config.data.t2i_batch_size]
    for job in {job.config.model_name_or_path: job for job in drawing}.values():
        prepare(job.config, options.cache, _progress)
    failed = _run_in_order(waiting, planned, options)
    there, results = finished(planned, folder), folder / "results.json"
    if there or imported.runs:
        took = None if known else time.monotonic() - began  # of a part of the runs it would be read as that of all
        content = collect(grid, GridRuns(planned, there, imported, compared, folder), took, options.command)
        write_json_atomic(results, content)
        if content["meta"]["missing"]:
            print(f"{grid.name}: {len(content['meta']['missing'])} of {len(planned)} runs are missing in {results}", flush=True)
    if failed:
        ends = "\n".join(f"--- {job.folder}\n{_tail(folder / job.folder / LOG)}" for job in failed[:3])
        raise ComparisonError(f"{len(failed)} of {len(wanted)} runs did not finish; the same command takes them up again\n{ends}")
    return results


def expected_work(job: Job) -> int:
    """About how long ``job`` takes, in pairs; what is to be understood costs about three pairs (its image, a longer text)."""
    data = job.config.data
    return job.config.max_steps * (data.t2i_batch_size + 3 * (data.mmu_batch_size + data.router_aux_samples))


def _run_in_order(waiting: Sequence[Job], planned: Sequence[Job], options: CompareOptions) -> list[Job]:
    """Run the jobs, each after those that it needs; returns those that failed. What needs one of them is left out."""
    failed: list[Job] = []
    left = list(waiting)
    while left:
        open_ones = {job.folder for job in left}
        ready = [job for job in left if open_ones.isdisjoint(job.parents)]
        left = [job for job in left if not open_ones.isdisjoint(job.parents)]
        done = {job.folder for job in finished(planned, options.folder)}
        failed += _run_all([job for job in ready if done.issuperset(job.parents)], options)
    return failed


def _run_all(waiting: Sequence[Job], options: CompareOptions) -> list[Job]:
    """Run the jobs in their order, some at a time; returns those that failed. A signal lets running ones save."""
    processes = Processes()
    with ThreadPoolExecutor(options.workers) as pool:
        try:
            running = [(job, pool.submit(_run, job, options.folder, options.cache, processes)) for job in waiting]
            failed = [job for job, future in running if future.result()]
        except KeyboardInterrupt:
            processes.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    for job in failed:
        mine = options.folder / job.folder
        write_text_atomic(mine / ERROR, _tail(mine / LOG, 1).removeprefix("unidecouple: "))
    return failed


def _run(job: Job, folder: Path, cache: Path, processes: Processes) -> int:
    """Train one job, from the base or from another job's model, or merge its parents; and score it."""
    mine = folder / job.folder
    mine.mkdir(parents=True, exist_ok=True)
    (mine / ERROR).unlink(missing_ok=True)
    recipe, config, kept = mine / "job.yaml", job.config, ["--cache", str(cache)]
    commands = [["train", str(recipe), "--output", str(mine), *kept]]
    if job.parents:
        write_text_atomic(mine / job.record_name, configs.dump(job.record))
    if job.merge:
        merged = mine / MERGED
        if not merged.is_dir():
            parents = [str(folder / parent) for parent in job.parents]
            source = ["--recipe", str(recipe), *kept]
            commands = merge_commands(job.merge.method, job.config.model_name_or_path, parents, merged, source) + commands
        config = replace(config, model_name_or_path=str(merged.resolve()))
    elif job.parents:
        config = replace(config, model_name_or_path=str(_model(folder / job.parents[0])))
    write_text_atomic(recipe, configs.dump(config))
    return next((code for arguments in commands if (code := _call(arguments, job, mine / LOG, processes))), 0)


def _model(run: Path) -> Path:
    """The checkpoint that a finished run ended with."""
    merged = run / MERGED
    return (merged if merged.is_dir() else run).resolve()


def _call(words: Sequence[str], job: Job, kept: Path, processes: Processes) -> int:
    """Run one command; its lines are shown with the job's name and kept in a file."""
    with kept.open("a") as log:

        def line(text: str) -> None:
            log.write(text)
            log.flush()
            if not text.startswith("  "):  # the table of trainable parts is for the log
                print(f"[{job.folder}] {text}", end="", flush=True)

        return processes.run(words, line)


def _progress(what: str, done: int, of: int) -> None:
    print(f"{what}: {done} of {of}", flush=True)


def _tail(path: Path, lines: int = 8) -> str:
    return "\n".join(path.read_text().splitlines()[-lines:]) if path.is_file() else "(no log)"
