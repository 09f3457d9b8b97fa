"""The command that looks into a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from unidecouple.cli.command import OK, add, add_cache, add_device, load_config, whole

if TYPE_CHECKING:
    from unidecouple.cli.command import Commands


def diagnose(arguments: argparse.Namespace) -> int:
    """Diagnose a checkpoint: gradient conflict, routing, alignment by depth and ablations; writes JSON and an HTML page."""
    from unidecouple import api
    from unidecouple.run import RunConfig

    if arguments.recipe and arguments.data:
        raise ValueError("--recipe and --data are both given: each names data to look at; leave one out")
    recipe = load_config(RunConfig, arguments.recipe) if arguments.recipe else None
    options = api.DiagnoseOptions(recipe=recipe, batches=arguments.batches, device=arguments.device, cache=arguments.cache)
    print(api.diagnose(arguments.checkpoint, arguments.output, arguments.data, options))
    return OK


def add_commands(commands: Commands) -> None:
    """``unidecouple diagnose``."""
    command = add(commands, diagnose, "diagnose")
    command.add_argument(
        "checkpoint", help="folder of a checkpoint or of a training run, or a shipped base: understanding, unified"
    )
    command.add_argument(
        "--recipe",
        nargs="+",
        default=[],
        help="recipe and key=value overrides whose held-out files are used (default: the recipe of the run)",
    )
    command.add_argument(
        "--data", type=Path, nargs="+", default=[], help="your own data files, in any format (default: the synthetic benchmark)"
    )
    command.add_argument("--output", type=Path, help="folder of diagnosis.json and diagnosis.html (default: diagnosis/<name>)")
    command.add_argument("--batches", type=whole(1), default=8, help="batches of 16 samples per task and measurement (default: 8)")
    add_device(command)
    add_cache(command)
