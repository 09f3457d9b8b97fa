"""The command line: one function a command, imports inside, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from unidecouple import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")
OK, FAILED, INTERRUPTED = 0, 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; user mistakes are one clear line on standard error, no traceback."""
    arguments = _parser().parse_args(argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        code: int = arguments.command(arguments)
    except (ValueError, OSError, ArithmeticError) as error:
        print(f"unidecouple: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("unidecouple: interrupted; finished runs are kept, and the same command resumes the others", file=sys.stderr)
        return INTERRUPTED
    return code


def experiment(arguments: argparse.Namespace) -> int:
    """Run a grid of training runs and write results.json and report.html."""
    from unidecouple.experiment.plan import Experiment
    from unidecouple.experiment.runner import ExperimentError, run_experiment

    chosen = _load(Experiment, arguments.recipe)
    folder = arguments.output or Path("runs") / chosen.name
    command = "unidecouple experiment " + " ".join(arguments.recipe)
    try:
        results = run_experiment(chosen, folder, arguments.cache, arguments.workers or os.cpu_count() or 1, command)
    except ExperimentError as error:
        print(f"unidecouple: {error}", file=sys.stderr)
        return FAILED
    print(f"results: {results}", flush=True)
    return report(argparse.Namespace(folder=folder))


def train(arguments: argparse.Namespace) -> int:
    """Train, score and diagnose one run; resumes by itself."""
    from unidecouple.run import RunConfig
    from unidecouple.train.execute import execute
    from unidecouple.train.loop import InterruptedRunError

    run = _load(RunConfig, arguments.recipe)
    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda number, frame: stop.set())
    try:
        execute(run, arguments.output, arguments.cache, lambda line: print(line, flush=True), stop)
    except InterruptedRunError as error:
        print(f"unidecouple: {error}. The same command resumes it", file=sys.stderr)
        return INTERRUPTED
    return OK


def report(arguments: argparse.Namespace) -> int:
    """Write report.html anew from an experiment's folder."""
    from unidecouple.report import write_report

    print(write_report(arguments.folder))
    return OK


def tokenizer(arguments: argparse.Namespace) -> int:
    """Make a tiny model with random weights and fit its image tokenizer to the world."""
    from unidecouple.train.scratch import Scratch, make_scratch

    make_scratch(_load(Scratch, arguments.recipe), arguments.output, lambda line: print(line, flush=True))
    return OK


def align(arguments: argparse.Namespace) -> int:
    """Copy a checkpoint with its image tokens and their head aligned with its words, for a model that shall learn to draw."""
    from unidecouple.train.scratch import align as copy

    print(copy(arguments.checkpoint, arguments.output, lambda line: print(line, flush=True)))
    return OK


def export(arguments: argparse.Namespace) -> int:
    """Copy a checkpoint's model to a folder, its frozen tokenizer in half precision, as the shipped bases are."""
    from unidecouple.train.scratch import export as copy

    print(copy(arguments.checkpoint, arguments.output))
    return OK


def convert(arguments: argparse.Namespace) -> int:
    """Copy a checkpoint between deepseek-ai's layout, transformers' and ours, with another structure if asked."""
    from unidecouple.convert.convert import convert as copy
    from unidecouple.convert.options import shard_bytes, structure, task
    from unidecouple.convert.steps import Conversion
    from unidecouple.train.build import checkpoint_folder

    wanted = Conversion(
        arguments.to,
        structure(arguments),
        task(arguments.task),
        arguments.merge_lora,
        shard_bytes(arguments.max_shard_size),
        arguments.seed,
    )
    copy(checkpoint_folder(str(arguments.checkpoint)), arguments.output, wanted, lambda line: print(line, flush=True))
    return OK


def _load(schema: type[T], recipe: Sequence[str]) -> T:
    """A configuration from the command line's YAML files and key=value overrides."""
    from unidecouple import config

    files = [entry for entry in recipe if "=" not in entry or Path(entry).is_file()]  # a run's folder may be named "...@lr=0.3"
    return config.load(schema, [Path(entry) for entry in files], [entry for entry in recipe if entry not in files])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="unidecouple", description="Train unified multimodal models on both tasks, and see the conflict."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(function: object, *, recipe: bool) -> argparse.ArgumentParser:
        name, text = getattr(function, "__name__", ""), getattr(function, "__doc__", "")
        command = commands.add_parser(name, help=text.rstrip("."), description=text)
        command.set_defaults(command=function)
        if recipe:
            command.add_argument(
                "recipe", nargs="+", help="YAML recipes, merged left to right, and key=value overrides of their keys"
            )
        return command

    grid = add(experiment, recipe=True)
    grid.add_argument("--output", type=Path, help="folder of the experiment (default: runs/<name>)")
    grid.add_argument("--workers", type=int, help="runs at a time, one thread each (default: number of cores)")
    one = add(train, recipe=True)
    one.add_argument("--output", type=Path, required=True, help="folder of the run")
    for command in (grid, one):
        command.add_argument(
            "--cache", type=Path, default=Path("runs/cache"), help="folder of drawn and encoded data (default: runs/cache)"
        )
    page = add(report, recipe=False)
    page.add_argument("folder", type=Path, help="folder of an experiment")
    fresh = add(tokenizer, recipe=True)
    fresh.add_argument("--output", type=Path, required=True, help="folder of the new checkpoint")
    layouts = add(convert, recipe=False)
    for copy in (add(align, recipe=False), add(export, recipe=False), layouts):
        copy.add_argument("checkpoint", type=Path, help="folder of the checkpoint, or of a run")
        copy.add_argument("--output", type=Path, required=True, help="folder to write")
    _add_conversion(layouts)
    return parser


def _add_conversion(command: argparse.ArgumentParser) -> None:
    layouts, structures = ("unidecouple", "transformers", "deepseek"), ("dense", "moe", "ta_moe")
    command.add_argument("--to", choices=layouts, default=layouts[0], help="layout of the result (default: unidecouple)")
    command.add_argument("--structure", choices=structures, help="structure of the result (default: as it is)")
    command.add_argument("--experts-per-task", type=int, help="experts in a task's group of a new mixture (default: 2)")
    command.add_argument("--num-experts-per-tok", type=int, help="experts a token is sent to (default: 1)")
    command.add_argument(
        "--no-shared-expert", dest="shared_expert", action="store_const", const=False, help="a new mixture without a shared expert"
    )
    command.add_argument("--alpha-init", type=float, help="weight of the shared expert at the start (default: 0.5)")
    command.add_argument("--moe-layers", help="layers that become mixtures, as 0,4-7 (default: all)")
    command.add_argument(
        "--context-router", action="store_const", const=True, help="the first mixture's task router looks at the tokens before"
    )
    command.add_argument("--task", choices=("mmu", "t2i"), help="keep only what serves this task; --structure dense then folds it")
    command.add_argument("--merge-lora", action="store_true", help="add low-rank updates to their weights (other layouts: always)")
    command.add_argument("--max-shard-size", default="5GB", help="most bytes of one file of weights (default: 5GB)")
    command.add_argument("--seed", type=int, default=0, help="of new routers (default: 0)")


if __name__ == "__main__":
    sys.exit(main())
