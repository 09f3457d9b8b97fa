"""Train, compare and merge."""

from __future__ import annotations

import json
import os
import shlex
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unidecouple import config as configs
from unidecouple.compare.plan import Comparison
from unidecouple.compare.runner import CompareOptions, run_comparison
from unidecouple.convert.load import all_checkpoints
from unidecouple.finetune import AUTO, HELD_OUT, FineTune, configure
from unidecouple.methods.merging import Merging, TaskArithmetic
from unidecouple.run import RunConfig
from unidecouple.source import PrintLine
from unidecouple.train.dry_run import describe
from unidecouple.train.merging import merge_checkpoints
from unidecouple.train.stop_request import StopRequest
from unidecouple.train.train import train as train_run

PathLike = str | os.PathLike[str]
Overrides = Mapping[str, Any] | Sequence[str]
CACHE = Path("runs/cache")


def print_at_once(line: str) -> None:
    """Print a line of progress."""
    print(line, flush=True)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What a training may be given besides model, data and method.

    Attributes:
        validation: held-out files; without them a fraction of the data is held out.
        validation_fraction: of each task's records, chosen by a fixed seed.
        columns: our name of a key or column -> its name in the files, as in ``{"question": "q", "answer": "a", "image": "path"}``.
        epochs: passes over the task with more samples; None for 10, but no more steps than the recipe's.
        cache: folder of generated and encoded data.
        dry_run: print what the run would do, and train nothing.
        print_line: gets lines of progress.
        stop: set to stop after the current step; None stops on Ctrl-C. The same call resumes.
    """

    validation: Sequence[PathLike] = ()
    validation_fraction: float = HELD_OUT
    columns: Mapping[str, str] = field(default_factory=dict)
    epochs: float | None = None
    cache: PathLike = CACHE
    dry_run: bool = False
    print_line: PrintLine = print_at_once
    stop: threading.Event | None = None


def train(
    output: PathLike,
    *,
    model: PathLike = "",
    data: PathLike | Sequence[PathLike] = (),
    method: str = AUTO,
    recipe: PathLike | Sequence[PathLike] = (),
    overrides: Overrides = (),
    options: TrainOptions | None = None,
) -> Path:
    """Train, score and diagnose one run; the same call resumes an interrupted one.

    Precedence, the later wins: recipe; ``model``, ``data`` and ``options``; ``overrides``.

    Args:
        output: folder of the run.
        model: a checkpoint's folder in any layout, a Hub id, or a shipped base.
        data: files to train on, in any format of the data page.
        method: a name that ``unidecouple recipes methods`` prints, or "auto", which chooses by the data and prints why.
        recipe: packaged recipes' names or YAML files, in place of a method.
        overrides: further keys of the configuration, as {"max_steps": 100} or ["stages.0.learning_rate=1e-4"].
        options: see ``TrainOptions``.

    Returns:
        Folder of the last checkpoint; with ``dry_run`` that of the run.

    Raises:
        ValueError: something asked for is unknown or does not fit, or ``output`` holds another run.
        InterruptedRunError: the run was stopped, and saved.
        TrainingDivergedError: a loss is not finite.
    """
    chosen, folder, cache = options or TrainOptions(), Path(output), Path((options or TrainOptions()).cache)
    asked = FineTune(
        os.fspath(model),
        paths(data),
        paths(recipe),
        method,
        paths(chosen.validation),
        chosen.validation_fraction,
        chosen.epochs,
        chosen.columns,
    )
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    run = configure(asked, override_words(overrides), cache, chosen.print_line if first else lambda line: None)
    if chosen.dry_run:
        _dry_run(run, cache, chosen.print_line)
        return folder
    stop = StopRequest() if chosen.stop is None else chosen.stop
    if chosen.stop is None and isinstance(stop, StopRequest):
        with stop.on_signals():
            train_run(run, folder, cache, chosen.print_line, stop)
    else:
        train_run(run, folder, cache, chosen.print_line, stop)
    return next(reversed(all_checkpoints(folder)), folder)


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """How a comparison is run.

    Attributes:
        workers: runs at a time, one thread each; None for the number of cores.
        only: parts of the grid, as "scenario=S1,seed=0"; empty for all.
        results: files results.json of the same grid from elsewhere, whose runs are taken.
        cache: folder of generated and encoded data.
        command: how this was called, for the record.
    """

    workers: int | None = None
    only: Sequence[str] = ()
    results: Sequence[PathLike] = ()
    cache: PathLike = CACHE
    command: str = ""


def compare(
    recipe: PathLike | Sequence[PathLike],
    output: PathLike | None = None,
    *,
    overrides: Overrides = (),
    options: GridOptions | None = None,
) -> Path:
    """Train methods x scenarios x learning rates x seeds on equal budgets, and write results.json and report.html.

    Args:
        recipe: packaged recipes' names or YAML files.
        output: folder of the comparison; None for ``runs/<name>``.
        overrides: as of ``train``.
        options: see ``GridOptions``.

    Returns:
        The folder, with results.json and report.html.

    Raises:
        ComparisonError: runs failed; what is finished is in the results and on the page.
        ValueError: the recipe does not fit.
    """
    from unidecouple.report import write_report

    chosen = options or GridOptions()
    words = override_words(overrides)
    grid = configs.load(Comparison, paths(recipe), words)
    folder = Path(output) if output is not None else Path("runs") / grid.name
    command = chosen.command or shlex.join(["unidecouple", "compare", *map(str, paths(recipe)), *words])
    workers = chosen.workers or os.cpu_count() or 1
    asked = CompareOptions(folder, Path(chosen.cache), workers, tuple(chosen.only), tuple(map(Path, chosen.results)), command)
    try:
        run_comparison(grid, asked)
    finally:
        if (folder / "results.json").is_file():
            write_report(folder)
    return folder


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """How models are merged.

    Attributes:
        method: where the coefficients come from.
        recipe, overrides: of a run whose data a method that learns reads.
        cache: folder of generated and encoded data.
        print_line: gets lines of progress.
    """

    method: Merging = field(default_factory=TaskArithmetic)
    recipe: Sequence[PathLike] = ()
    overrides: Overrides = ()
    cache: PathLike = CACHE
    print_line: PrintLine = print_at_once


def merge(base: PathLike, tuned: Sequence[PathLike], output: PathLike, options: MergeOptions | None = None) -> Path:
    """Merge models that were fine-tuned from one base, each on a task of its own, into one.

    Args:
        base: checkpoint that they were fine-tuned from.
        tuned: their folders, or their runs'.
        output: folder to write.
        options: see ``MergeOptions``.

    Returns:
        ``output``.

    Raises:
        ValueError: the checkpoints are not of one start and structure, or a method that learns has no data.
    """
    chosen, target = options or MergeOptions(), Path(output)
    run = configs.load(RunConfig, paths(chosen.recipe), override_words(chosen.overrides)) if chosen.recipe else None
    names = [os.fspath(one) for one in tuned]
    merge_checkpoints(os.fspath(base), names, target, chosen.method, run, Path(chosen.cache), chosen.print_line)
    return target


def paths(given: PathLike | Sequence[PathLike]) -> tuple[Path, ...]:
    """``given``, one or several, as paths."""
    return (Path(given),) if isinstance(given, str | os.PathLike) else tuple(map(Path, given))


def override_words(given: Overrides) -> list[str]:
    """``given`` as "dotted.key=value"."""
    return [f"{key}={json.dumps(value)}" for key, value in given.items()] if isinstance(given, Mapping) else list(given)


def _dry_run(run: RunConfig, cache: Path, print_line: PrintLine) -> None:
    from unidecouple.plan.stages import PlanRequest
    from unidecouple.plan.stages import plan as stages
    from unidecouple.plan.text import memory_of_one

    describe(run, cache, print_line)
    question = PlanRequest((1,), dtype="bf16" if run.bf16 else "fp32")
    print_line("\nmemory of one process at the peak of a step, computed (see docs/scale.md)")
    print_line("\n".join(memory_of_one(stages(run, question), run.gradient_checkpointing)))
