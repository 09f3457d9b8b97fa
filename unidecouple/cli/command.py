"""What all commands share: exit codes, how a command is added, how its configuration is read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
    Command = Callable[[argparse.Namespace], int]

T = TypeVar("T")
OK, FAILED = 0, 1
OWN = "what the checkpoint's generation_config.json says, else"
"""Of a setting's default, in help."""


def say(line: str) -> None:
    """Print a line of progress at once."""
    print(line, flush=True)


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A type of argparse's: whole numbers from ``least`` to ``most``."""
    allowed = f"at least {least}" if most is None else f"from {least} to {most}"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{value} must be {allowed}")
        return value

    return read


def share(text: str) -> float:
    """A type of argparse's: numbers from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be from 0 to 1")
    return value


def existing(path: Path | None, what: str) -> None:
    """Make sure that ``path``, if given, is a file that can be read, before anything is loaded or computed.

    Raises:
        ValueError: it is none.
    """
    if path is not None and not path.is_file():
        said = "is a folder" if path.is_dir() else "is a pipe or a device" if path.exists() else "does not exist"
        raise ValueError(f"{what} {path} {said}: name a file")


def add(commands: Commands, function: Command, name: str, *, recipe: bool = False) -> argparse.ArgumentParser:
    """A command called ``name`` that runs ``function``, whose docstring is its help; with ``recipe`` it takes recipes."""
    text = function.__doc__ or ""
    command = commands.add_parser(name, help=text.rstrip("."), description=text)
    command.set_defaults(command=function)
    if recipe:
        command.add_argument("recipe", nargs="+", help="YAML recipes, merged left to right, and key=value overrides of their keys")
    return command


def add_group(commands: Commands, name: str, text: str) -> Commands:
    """A command of commands."""
    group = commands.add_parser(name, help=text.rstrip("."), description=text)
    return group.add_subparsers(required=True, metavar="COMMAND")


def load_config(schema: type[T], recipe: Sequence[str]) -> T:
    """A configuration from the command line's YAML files and key=value overrides.

    Raises:
        ConfigError: see ``config.load``; of a recipe for another command it names that command.
    """
    from unidecouple import config

    files = [entry for entry in recipe if "=" not in entry or _exists(entry)]  # a run's folder may be named "...@lr=0.3"
    paths, overrides = [Path(entry) for entry in files], [entry for entry in recipe if entry not in files]
    try:
        return config.load(schema, paths, overrides)
    except config.ConfigError:
        if (meant := _meant(schema, config.top_keys(paths))) is not None:
            raise config.ConfigError(f"{' '.join(files)}: {meant}") from None
        raise


def _exists(entry: str) -> bool:
    try:
        return Path(entry).is_file()
    except OSError:  # an override may be longer than any file's name
        return False


def _meant(schema: type, given: AbstractSet[str]) -> str | None:
    """What a recipe with the keys ``given`` is, if it fits another command's configuration better than ``schema``."""
    from dataclasses import fields

    from unidecouple.compare.plan import Comparison
    from unidecouple.run import RunConfig
    from unidecouple.train.scratch import Scratch

    known = {
        Comparison: "this is a grid of runs: `unidecouple compare` takes it",
        RunConfig: "this is one run: `unidecouple train` takes it, and a grid needs scenarios and variants",
        Scratch: "this describes a fresh tokenizer: `unidecouple tokenizer` takes it",
    }
    fitting = {kind: len(given & {one.name for one in fields(kind)}) for kind in (schema, *known)}
    best = max(fitting, key=lambda kind: fitting[kind])  # the first of equals, which is ``schema`` if it is among them
    return None if best is schema else known[best]


def progress_bar(what: str, unit: str) -> Callable[[int, int], None]:
    """A progress bar of ``unit`` on standard error where that is a terminal; called with (done, of)."""
    from tqdm import tqdm

    bar = tqdm(desc=what, unit=f" {unit}", disable=not sys.stderr.isatty(), leave=False)

    def show(done: int, of: int) -> None:
        bar.total = of
        bar.update(done - bar.n)
        if done == of:
            bar.close()

    return show
