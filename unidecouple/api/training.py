"""Train, compare and merge."""

from __future__ import annotations

import json
import os
import shlex
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unidecouple import config as configs
from unidecouple.compare.plan import Comparison
from unidecouple.compare.runner import CompareOptions, run_comparison
from unidecouple.convert.stored import all_checkpoints
from unidecouple.finetune import AUTO, HELD_OUT, FineTune, configure, with_steps
from unidecouple.methods.merging import Merging, TaskArithmetic
from unidecouple.own_comparison import OwnComparison, configure_comparison, default_workers
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
class DataOptions:
    """How the files of ``data`` are used.

    Attributes:
        validation: held-out files; without them a fraction of the data is held out.
        validation_fraction: of each task's records, chosen by a fixed seed.
        columns: our name of a key or column -> its name in the files, as in ``{"question": "q", "answer": "a", "image": "path"}``.
        epochs: passes over the task with more samples; None for 10, but no more steps than the recipe's.
        cache: folder of generated and encoded data.
        print_line: gets lines of progress.
    """

    validation: PathLike | Sequence[PathLike] = ()
    validation_fraction: float = HELD_OUT
    columns: Mapping[str, str] = field(default_factory=dict)
    epochs: float | None = None
    cache: PathLike = CACHE
    print_line: PrintLine = print_at_once


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DataOptions):
    """What a training may be given besides model, data and method; see ``DataOptions``, too.

    Attributes:
        dry_run: print what the run would do, and train nothing.
        stop: set to stop after the current step; None stops on Ctrl-C. The same call resumes.
    """

    dry_run: bool = False
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
    asked = _fine_tune(model, data, chosen, paths(recipe), method)
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
class GridOptions(DataOptions):
    """How a comparison is run; ``DataOptions`` go with ``model`` and ``data``.

    Attributes:
        benchmarks: name -> folder of a published benchmark's files, which runs on ``data`` are scored by, too.
        workers: runs at a time, one thread each; None for one on a GPU, else the number of cores.
        only: parts of the grid, as "scenario=S1,seed=0"; empty for all.
        results: files results.json of the same grid from elsewhere, whose runs are taken.
        command: how this was called, for the record.
    """

    benchmarks: Mapping[str, PathLike] = field(default_factory=dict)
    workers: int | None = None
    only: Sequence[str] = ()
    results: Sequence[PathLike] = ()
    command: str = ""


def compare(
    recipe: PathLike | Sequence[PathLike] = (),
    output: PathLike | None = None,
    *,
    model: PathLike = "",
    data: PathLike | Sequence[PathLike] = (),
    methods: Sequence[str] = (),
    overrides: Overrides = (),
    options: GridOptions | None = None,
) -> Path:
    """Train methods x scenarios x learning rates x seeds on equal budgets, and write results.json and report.html.

    Give recipes of a grid, or ``model``, ``data`` and ``methods``, which make one: each method with three seeds, scored on held-out
    data of both tasks.

    Args:
        recipe: packaged recipes' names or YAML files.
        output: folder of the comparison; None for ``runs/<name>``, or ``runs/own`` without a recipe.
        model, data: as of ``train``.
        methods: names that ``unidecouple recipes methods`` prints.
        overrides: keys of the grid, as {"seeds": [0], "run.max_steps": 100}.
        options: see ``GridOptions``.

    Returns:
        The folder, with results.json and report.html.

    Raises:
        ComparisonError: runs failed; what is finished is in the results and on the page.
        ValueError: the recipe does not fit.
    """
    from unidecouple.report import write_report

    chosen = options or GridOptions()
    words, cache = override_words(overrides), Path(chosen.cache)
    if methods or model or data:
        if paths(recipe) or not (methods and model and paths(data)):
            raise ValueError("give --model, --data and --methods together, or a recipe without them")
        name = Path(output).resolve().name if output is not None else "own"
        benchmarks = {benchmark: Path(folder) for benchmark, folder in chosen.benchmarks.items()}
        own = OwnComparison(_fine_tune(model, data, chosen), tuple(methods), benchmarks, name, chosen.workers)
        grid = configure_comparison(own, words, cache, chosen.print_line)
    else:
        grid = _grid(paths(recipe), words, cache, chosen.print_line)
    folder = Path(output) if output is not None else Path("runs") / grid.name
    command = chosen.command or shlex.join(["unidecouple", "compare", *map(str, paths(recipe)), *words])
    workers = chosen.workers or default_workers(grid.run.device)
    asked = CompareOptions(folder, cache, workers, tuple(chosen.only), tuple(map(Path, chosen.results)), command)
    try:
        run_comparison(grid, asked)
    finally:
        if (folder / "results.json").is_file():
            write_report(folder)
    return folder


def _grid(recipe: tuple[Path, ...], words: list[str], cache: Path, print_line: PrintLine) -> Comparison:
    if not recipe:
        raise ValueError(
            "give a recipe, or your data: `unidecouple compare --model ID_OR_FOLDER --data FILE --methods dense,lora_task "
            "--output DIR`"
        )
    grid = configs.load(Comparison, recipe, words)
    return replace(grid, run=with_steps(grid.run, cache, print_line))


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


def _fine_tune(
    model: PathLike,
    data: PathLike | Sequence[PathLike],
    options: DataOptions,
    recipe: tuple[Path, ...] = (),
    method: str = AUTO,
) -> FineTune:
    return FineTune(
        os.fspath(model),
        paths(data),
        recipe,
        method,
        paths(options.validation),
        options.validation_fraction,
        options.epochs,
        options.columns,
    )


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
