"""The command that makes bases: ``unidecouple assemble``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from unidecouple.cli.command import OK, add, load_config, say, whole

if TYPE_CHECKING:
    from unidecouple.cli.command import Commands

_LOG = logging.getLogger(__name__)


def assemble(arguments: argparse.Namespace) -> int:
    """Make a base: from a language model, from nothing by a recipe, or from a base by aligning its image tokens with its words."""
    given = [bool(arguments.recipe), arguments.language is not None, arguments.align is not None]
    if sum(given) != 1:
        raise ValueError("give one of --language (a language model), a recipe (a base from nothing) and --align (a base)")
    if arguments.language is None and (arguments.parts is not None or arguments.seed is not None):
        raise ValueError("--parts and --seed go with --language: a recipe has its own seed")
    if arguments.language is not None:
        from unidecouple.convert.language import assemble_base
        from unidecouple.convert.language_packages import located_language

        wanted = (arguments.output, arguments.parts or "understanding", arguments.seed or 0)
        assemble_base(located_language(arguments.language), *wanted, say)
        return OK
    if arguments.align is not None:
        from unidecouple.world.scratch import align as copy

        print(copy(arguments.align, arguments.output, say))
        return OK
    from unidecouple.world.scratch import Scratch, make_scratch

    make_scratch(load_config(Scratch, arguments.recipe), arguments.output, say)
    return OK


def tokenizer(arguments: argparse.Namespace) -> int:
    """Former name of `unidecouple assemble RECIPE`; removed in version 0.3."""
    return _former(arguments, "tokenizer RECIPE", "assemble RECIPE")


def align(arguments: argparse.Namespace) -> int:
    """Former name of `unidecouple assemble --align CHECKPOINT`; removed in version 0.3."""
    return _former(arguments, "align CHECKPOINT", "assemble --align CHECKPOINT")


def _former(arguments: argparse.Namespace, old: str, new: str) -> int:
    _LOG.warning("`unidecouple %s` is now `unidecouple %s`; the old name will be an error in version 0.3", old, new)
    return assemble(
        argparse.Namespace(**{"recipe": [], "language": None, "parts": None, "align": None, "seed": None} | vars(arguments))
    )


def recipes() -> dict[type, str]:
    """Configuration class -> what a recipe of it is, for recipes given to another command."""
    from unidecouple.world.scratch import Scratch

    return {Scratch: "this describes a base from nothing: `unidecouple assemble` takes it"}


def add_commands(commands: Commands) -> None:
    """``unidecouple assemble``, and its former names."""
    made = add(commands, assemble, "assemble")
    made.add_argument("recipe", nargs="*", help="of a base from nothing: YAML recipes and key=value overrides of their keys")
    made.add_argument("--language", metavar="MODEL", help="folder of a Llama-like language model, a GGUF file, or smollm2")
    made.add_argument(
        "--parts", metavar="BASE", help="base whose vision tower and image tokenizer it gets (default: understanding)"
    )
    made.add_argument("--seed", type=whole(0), help="with --language: of the new adaptors (default: 0)")
    made.add_argument("--align", type=Path, metavar="CHECKPOINT", help="copy this base, its image tokens aligned with its words")
    fresh = add(commands, tokenizer, "tokenizer", recipe=True)
    copy = add(commands, align, "align")
    copy.add_argument("align", metavar="checkpoint", type=Path, help="folder of the checkpoint, or of a training run")
    for command in (made, fresh, copy):
        command.add_argument("--output", type=Path, required=True, help="folder to write the result to")
