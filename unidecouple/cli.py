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


def plan(arguments: argparse.Namespace) -> int:
    """Say on paper what a run needs on other hardware: memory, FLOPs, communication, time, cost, and what breaks first."""
    import json

    from unidecouple.plan.load import Lengths
    from unidecouple.plan.stages import Question
    from unidecouple.plan.stages import plan as stages
    from unidecouple.plan.text import lines, plain
    from unidecouple.run import RunConfig

    run = _load(RunConfig, arguments.recipe)
    lengths = Lengths(arguments.mmu_length, arguments.t2i_length)
    samples = None if arguments.samples is None else int(arguments.samples)
    question = Question(
        tuple(arguments.gpus), arguments.device, arguments.dtype, arguments.batch_size, lengths, samples, arguments.price
    )
    plans = stages(run, question)
    print(json.dumps(plain(run, question, plans), indent=1) if arguments.json else "\n".join(lines(run, question, plans)))
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
    paper = add(plan, recipe=True)
    paper.add_argument("--gpus", type=int, nargs="+", default=[8], help="numbers of devices to plan for (default: 8)")
    paper.add_argument("--device", default="h100", help="h100, h200, a100, b200, 4090 or cpu (default: h100)")
    paper.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="type of the computation (default: bf16)")
    paper.add_argument("--batch-size", type=int, help="samples a device and step, both tasks together (default: the recipe's)")
    paper.add_argument("--mmu-length", type=int, help="tokens of an understanding sample, picture included (default: the recipe's)")
    paper.add_argument("--t2i-length", type=int, help="tokens of a generation sample, picture included (default: the recipe's)")
    paper.add_argument("--samples", type=float, help="samples of the whole run (default: max_steps steps of one device)")
    paper.add_argument("--price", type=float, help="price of a device hour, for costs in the same currency")
    paper.add_argument("--json", action="store_true", help="print all figures as JSON")
    page = add(report, recipe=False)
    page.add_argument("folder", type=Path, help="folder of an experiment")
    fresh = add(tokenizer, recipe=True)
    fresh.add_argument("--output", type=Path, required=True, help="folder of the new checkpoint")
    for copy in (add(align, recipe=False), add(export, recipe=False)):
        copy.add_argument("checkpoint", type=Path, help="folder of the checkpoint, or of a run")
        copy.add_argument("--output", type=Path, required=True, help="folder to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
