"""Commands that train, that plan and that report on runs."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unidecouple.cli.command import (
    FAILED,
    OK,
    RECIPES,
    add,
    add_cache,
    naming_command,
    number,
    recipes_and_overrides,
    say,
    share,
    whole,
)
from unidecouple.cli.data import columns

if TYPE_CHECKING:
    from unidecouple.cli.command import Commands


def compare(arguments: argparse.Namespace) -> int:
    """Train methods on equal budgets, and write results.json and report.html. Give a recipe, or --model, --data and --methods.

    Precedence, the later wins: recipe, options, key=value (keys of the grid: seeds=[0] run.max_steps=100).
    """
    import shlex

    from unidecouple import api
    from unidecouple.compare.plan import Comparison
    from unidecouple.compare.runner import ComparisonError

    recipes, data, validation, overrides = _files(arguments)
    given = {**vars(arguments), "columns": ",".join(f"{name}={column}" for name, column in (arguments.columns or {}).items())}
    named = ("model", "methods", "benchmarks", "columns", "epochs")
    options = [f"--{name}={given[name]}" for name in named if given[name]]
    options += [f"--validation-fraction={arguments.validation_fraction}"] if data and not validation else []
    options += ["--data", *map(str, data)] if data else []
    options += ["--validation", *map(str, validation)] if validation else []
    options += [f"--only={text}" for text in arguments.only] + [f"--results={path}" for path in arguments.results]
    grid = api.GridOptions(
        **_data_options(arguments, validation),
        cache=arguments.cache,
        benchmarks=_folders(arguments.benchmarks),
        workers=arguments.workers,
        only=arguments.only,
        results=arguments.results,
        command=shlex.join(["unidecouple", "compare", *map(str, recipes), *overrides, *options]),
    )
    try:
        with naming_command(Comparison, recipes):
            folder = api.compare(
                recipes,
                arguments.output,
                model=arguments.model,
                data=data,
                methods=[name for name in arguments.methods.split(",") if name],
                overrides=overrides,
                options=grid,
            )
    except ComparisonError as error:
        print(f"unidecouple: {error}", file=sys.stderr)
        return FAILED
    print(f"results: {folder / 'results.json'}\n{folder / 'report.html'}", flush=True)
    return OK


def train(arguments: argparse.Namespace) -> int:
    """Train, score and diagnose one run; a rerun resumes it. Give a recipe, or --model and --data.

    Precedence, the later wins: recipe, options, key=value.
    """
    recipes, data, validation, overrides = _files(arguments)
    if int(os.environ.get("RANK", "0")) == 0:  # at once; torch takes seconds to load
        say(f"loading PyTorch to train {arguments.model or ' '.join(map(str, recipes))}; output: {arguments.output}")
    from unidecouple import api
    from unidecouple.run import RunConfig

    options = api.TrainOptions(
        **_data_options(arguments, validation), cache=arguments.cache, dry_run=arguments.dry_run, stop=arguments.stop
    )
    with naming_command(RunConfig, recipes):
        api.train(
            arguments.output,
            model=arguments.model,
            data=data,
            method=arguments.method,
            recipe=recipes,
            overrides=overrides,
            options=options,
        )
    return OK


def _files(arguments: argparse.Namespace) -> tuple[list[Path], list[Path], list[Path], list[str]]:
    """Recipes, --data, --validation, and the key=value overrides, which may follow the last file of each."""
    recipes, overrides = recipes_and_overrides(arguments.recipe)
    data, after_data = recipes_and_overrides(arguments.data)
    validation, after_validation = recipes_and_overrides(arguments.validation)
    return recipes, data, validation, [*overrides, *after_data, *after_validation]


def _data_options(arguments: argparse.Namespace, validation: list[Path]) -> dict[str, Any]:
    """Fields that ``api.DataOptions`` and ``finetune.FineTune`` share."""
    return {
        "validation": tuple(validation),
        "validation_fraction": arguments.validation_fraction,
        "columns": arguments.columns or {},
        "epochs": arguments.epochs,
    }


def _folders(text: str) -> dict[str, Path]:
    """The folder of each benchmark in ``NAME=FOLDER,...``."""
    pairs = [entry.partition("=") for entry in text.split(",") if entry]
    for name, equals, folder in pairs:
        if not (name and equals and folder):
            raise ValueError(f"--benchmarks {text!r} must be NAME=FOLDER,..., as pope=data/pope,mme=data/mme")
    return {name: Path(folder) for name, _, folder in pairs}


def plan(arguments: argparse.Namespace) -> int:
    """Estimate what a run needs on other hardware: memory, FLOPs, communication, time, cost and the first limit.

    Give a recipe, or --model and --data, as to `unidecouple train`. Precedence, the later wins: recipe, options, key=value.
    """
    import json

    from unidecouple.finetune import FineTune, configure
    from unidecouple.plan.batch_shapes import Lengths
    from unidecouple.plan.stages import PlanRequest
    from unidecouple.plan.stages import plan as stages
    from unidecouple.plan.text import lines, plain
    from unidecouple.run import RunConfig

    recipes, data, validation, overrides = _files(arguments)
    asked = FineTune(
        arguments.model, tuple(data), recipe=tuple(recipes), method=arguments.method, **_data_options(arguments, validation)
    )
    decisions = functools.partial(print, file=sys.stderr if arguments.json else sys.stdout)
    with naming_command(RunConfig, recipes):
        run = configure(asked, overrides, arguments.cache, decisions, on_this_machine=False)
    lengths = Lengths(arguments.mmu_length, arguments.t2i_length, arguments.source_images)
    samples = None if arguments.samples is None else int(arguments.samples)
    question = PlanRequest(
        tuple(arguments.gpus), arguments.device, arguments.dtype, arguments.batch_size, lengths, samples, arguments.price
    )
    plans = stages(run, question)
    print(json.dumps(plain(run, question, plans), indent=1) if arguments.json else "\n".join(lines(run, question, plans)))
    return OK


def report(arguments: argparse.Namespace) -> int:
    """Rewrite report.html of a comparison, or write one page about several runs and evaluations."""
    import shlex

    from unidecouple.report import write_report

    folders, output = arguments.folders, arguments.output
    if output is None:
        if len(folders) > 1:
            raise ValueError("several folders make a new page: name its folder with --output")
        print(write_report(folders[0]))
        return OK
    from unidecouple.compare.existing import gather

    given = [*map(str, folders), "--output", str(output)] + (["--control", arguments.control] if arguments.control else [])
    gather(folders, output, arguments.control, shlex.join(["unidecouple", "report", *given]))
    print(write_report(output))
    return OK


def add_commands(commands: Commands) -> None:
    """``unidecouple compare|train|plan|report``."""
    for command in (_add_compare(commands), _add_train(commands), _add_plan(commands)):
        _add_own_data(command)
        add_cache(command)
    _add_report(commands)


def _add_compare(commands: Commands) -> argparse.ArgumentParser:
    grid = add(commands, compare, "compare")
    grid.add_argument("recipe", nargs="*", help=RECIPES)
    grid.add_argument(
        "--methods",
        default="",
        metavar="NAME,...",
        help="methods to compare on --data instead of a recipe; `recipes methods` lists them; dense is the control",
    )
    grid.add_argument(
        "--benchmarks", default="", metavar="NAME=FOLDER,...", help="published benchmarks to score by: pope, vqa, mmmu, mme"
    )
    grid.add_argument("--output", type=Path, help="folder to write runs and report to (default: runs/<name>)")
    grid.add_argument(
        "--workers", type=whole(1), help="runs in parallel, one CPU thread each (default: one on a GPU, else the number of cores)"
    )
    grid.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="KEY=VALUE,...",
        help="run only the part of the grid where every key has one of its values; keys: scenario, variant, rate, seed",
    )
    grid.add_argument(
        "--results",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="import the runs of this results.json of the same grid, from another folder or machine, instead of training them",
    )
    return grid


def _add_plan(commands: Commands) -> argparse.ArgumentParser:
    paper = add(commands, plan, "plan")
    _add_recipe_or_method(paper)
    paper.add_argument(
        "--gpus", type=whole(1), nargs="+", default=[8], help="numbers of devices to plan for, such as 1 8 64 (default: 8)"
    )
    paper.add_argument("--device", default="h100", help="type of the devices: h100, h200, a100, b200, 4090 or cpu (default: h100)")
    paper.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="data type of the computation (default: bf16)")
    paper.add_argument("--batch-size", type=whole(1), help="samples per step, both tasks together (default: the recipe's)")
    paper.add_argument(
        "--mmu-length", type=whole(1), help="tokens per understanding sample, image included (default: the recipe's)"
    )
    paper.add_argument("--t2i-length", type=whole(1), help="tokens per generation sample, image included (default: the recipe's)")
    paper.add_argument(
        "--source-images", type=whole(0), help="source images per generation sample, for edits (default: the recipe's)"
    )
    paper.add_argument("--samples", type=number(1, 1e15), help="samples of the whole run (default: as many as max_steps steps use)")
    paper.add_argument("--price", type=number(0), help="price of one device hour; costs are printed in the same currency")
    paper.add_argument("--json", action="store_true", help="print all figures as JSON")
    return paper


def _add_report(commands: Commands) -> None:
    page = add(commands, report, "report")
    page.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="folder of a comparison; with --output: folders of finished runs and of `unidecouple eval`",
    )
    page.add_argument("--output", type=Path, help="write a new page to this folder from the scores.json of each FOLDER")
    page.add_argument("--control", default="", help="name of the folder that the others are compared with (default: the first)")


def _add_own_data(command: argparse.ArgumentParser) -> None:
    """Options of a run, or a comparison, on a user's model and files."""
    command.add_argument(
        "--model", default="", help="checkpoint to fine-tune: folder in any layout, Hub id or shipped base (default: the recipe's)"
    )
    command.add_argument("--data", nargs="+", default=[], metavar="FILE", help="data files to train on (default: the recipe's)")
    command.add_argument(
        "--validation", nargs="+", default=[], metavar="FILE", help="held-out data files (default: a fraction of --data)"
    )
    command.add_argument(
        "--columns",
        type=columns,
        metavar="NAME=COLUMN,...",
        help="map our field names to your keys in --data, such as question=q,answer=a,image=path",
    )
    command.add_argument(
        "--validation-fraction",
        type=share,
        default=0.05,
        help="fraction of each task's records in --data to hold out (default: 0.05)",
    )
    command.add_argument("--epochs", type=number(above=0), help="passes over --data (default: 10, at most max_steps of the recipe)")


def _add_recipe_or_method(command: argparse.ArgumentParser) -> None:
    """How one run trains."""
    command.add_argument("recipe", nargs="*", help=RECIPES)
    command.add_argument(
        "--method",
        default="auto",
        help="method instead of a recipe; `recipes methods` lists them (default: chosen from the data, with the reason)",
    )


def _add_train(commands: Commands) -> argparse.ArgumentParser:
    one = add(commands, train, "train")
    _add_recipe_or_method(one)
    one.add_argument("--output", type=Path, required=True, help="folder to write the run to")
    one.add_argument(
        "--dry-run", action="store_true", help="print configuration, trainable weights, one batch and memory, and train nothing"
    )
    return one
