"""What all commands share: exit codes, how a command is added, how its configuration is read."""

from __future__ import annotations

import argparse
import inspect
import math
import sys
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from unidecouple.bounds import cut
from unidecouple.inputs import special_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from collections.abc import Set as AbstractSet

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
    Command = Callable[[argparse.Namespace], int]

T = TypeVar("T")
OK, FAILED = 0, 1
MOST = 2**63 - 1
"""The largest whole number that an option takes: what torch and JSON's readers hold."""
OWN = "from the checkpoint's generation_config.json, else"
"""Of a setting's default, in help."""


def say(line: str) -> None:
    """Print a line of progress at once."""
    print(line, flush=True)


def whole(least: int, most: int = MOST) -> Callable[[str], int]:
    """A type of argparse's: whole numbers from ``least`` to ``most``."""
    allowed = f"at least {least}" if most == MOST else f"from {least} to {most}"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{cut(text)!r} is no whole number") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{cut(text)} must be {allowed}")
        return value

    return read


def number(least: float | None = None, most: float | None = None, *, above: float | None = None) -> Callable[[str], float]:
    """A type of argparse's: finite numbers from ``least``, or above ``above``, to ``most``."""
    ends = [f"{word} {end:g}" for word, end in (("above", above), ("at least", least), ("at most", most)) if end is not None]
    allowed = f"from {least:g} to {most:g}" if least is not None and most is not None else " and ".join(ends) or "a finite number"

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{cut(text)!r} is no number") from None
        too_low = (least is not None and value < least) or (above is not None and value <= above)
        if not math.isfinite(value) or too_low or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{cut(text)} must be {allowed}")
        return value

    return read


share = number(0, 1)
RECIPES: Final = "YAML files or names of packaged recipes, merged from left to right, and key=value overrides"
"""Help of what is a list of recipes."""


def existing(path: Path | None, what: str) -> None:
    """Make sure that ``path``, if given, is a file that can be read, before anything is loaded or computed.

    Raises:
        ValueError: it is none.
    """
    if path is not None and not path.is_file():
        said = "is a folder" if path.is_dir() else f"is {kind}" if (kind := special_file(path)) else "does not exist"
        raise ValueError(f"{what} {path} {said}: name a file")


def add(commands: Commands, function: Command, name: str, *, recipe: bool = False) -> argparse.ArgumentParser:
    """A command called ``name`` that runs ``function``, whose docstring is its help; with ``recipe`` it takes recipes."""
    text = inspect.cleandoc(function.__doc__ or "")
    command = commands.add_parser(name, help=text.partition("\n")[0].rstrip("."), description=text)
    command.set_defaults(command=function)
    if recipe:
        command.add_argument("recipe", nargs="+", help=RECIPES)
    return command


def add_cache(command: argparse.ArgumentParser) -> None:
    """Give ``command`` the option ``--cache``."""
    command.add_argument(
        "--cache",
        type=Path,
        default=Path("runs/cache"),
        help="folder for indices, synthetic scenes and encoded images (default: runs/cache)",
    )


def add_device(command: argparse.ArgumentParser) -> None:
    """Give ``command`` the option ``--device``."""
    command.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="device to compute on (default: auto, a GPU if there is one)",
    )


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

    paths, overrides = recipes_and_overrides(recipe)
    with naming_command(schema, paths):
        return config.load(schema, paths, overrides)


def recipes_and_overrides(entries: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The command line's recipes, and its key=value overrides."""
    files = [entry for entry in entries if "=" not in entry or _exists(entry)]  # a run's folder may be named "...@lr=0.3"
    return [Path(entry) for entry in files], [entry for entry in entries if entry not in files]


@contextmanager
def naming_command(schema: type, paths: Sequence[Path]) -> Iterator[None]:
    """In the block, an error in ``paths`` that are recipes for another command than the one of ``schema`` names that command."""
    from unidecouple import config

    try:
        yield
    except config.ConfigError:
        if (meant := _meant(schema, config.top_keys(paths))) is not None:
            raise config.ConfigError(f"{' '.join(map(str, paths))}: {meant}") from None
        raise


def _exists(entry: str) -> bool:
    try:
        return Path(entry).is_file()
    except OSError:  # an override may be longer than any file's name
        return False


def _meant(schema: type, given: AbstractSet[str]) -> str | None:
    """What a recipe with the keys ``given`` is, if it fits another command's configuration better than ``schema``."""
    from dataclasses import fields

    from unidecouple import plugins
    from unidecouple.compare.plan import Comparison
    from unidecouple.run import RunConfig

    known: dict[type, str] = {
        Comparison: "this is a grid of runs: `unidecouple compare` takes it",
        RunConfig: "this is one run: `unidecouple train` takes it, and a grid needs scenarios and variants",
    }
    for name in plugins.COMMANDS:
        known |= import_module(name).recipes()
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
