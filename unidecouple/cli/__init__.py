"""The command line: one function a command, imports inside, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from unidecouple import __version__, plugins
from unidecouple.cli import checkpoints, data, delta, diagnosis, evaluation, recipes, runs, use
from unidecouple.cli.ending import run_command
from unidecouple.train.stop_request import StopRequest

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors are one clear line on standard error, no traceback."""
    arguments = argparse.Namespace(stop=StopRequest(), output=None)

    def command() -> int:
        parser, words = _parser(), list(sys.argv[1:] if argv is None else argv)
        for word in words:
            if word.startswith("--") and word.endswith("=--"):  # argparse of Python 3.11 makes an empty list of it
                parser.error(f"argument {word.removesuffix('=--')}: '--' is no value")
        _, left = parser.parse_known_args(words, arguments)
        if left and (not hasattr(arguments, "recipe") or any(word.startswith("-") for word in left)):
            parser.error(f"unrecognized arguments: {' '.join(left)}")
        if left:  # key=value after options: argparse takes positional arguments from one place only
            arguments.recipe = [*arguments.recipe, *left]
        _print_log()
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        code: int = arguments.command(arguments)
        return code

    with arguments.stop.on_signals():
        return run_command(command, arguments.stop, lambda: arguments.output)


class _Printed(logging.Handler):
    """Prints what the package logs to standard error, unless a command set up logging itself, as ``serve`` does."""

    def emit(self, record: logging.LogRecord) -> None:
        """See ``logging.Handler``."""
        if not logging.getLogger().handlers:
            print(f"unidecouple: {record.getMessage()}", file=sys.stderr, flush=True)


def _print_log() -> None:
    """Show downloads and conversions, which take minutes, and warnings."""
    log = logging.getLogger("unidecouple")
    log.setLevel(logging.INFO)
    if not any(isinstance(handler, _Printed) for handler in log.handlers):
        log.addHandler(_Printed())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="unidecouple",
        description="Fine-tune unified multimodal models on understanding and generation, and measure task conflict.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in (recipes, runs, evaluation, diagnosis, delta, use, data, checkpoints):
        group.add_commands(commands)
    for name in plugins.COMMANDS:
        import_module(name).add_commands(commands)
    return parser
