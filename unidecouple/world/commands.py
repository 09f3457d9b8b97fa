"""Commands that make bases from scratch: ``unidecouple tokenizer`` and ``unidecouple align``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from unidecouple.cli.command import OK, add, load_config, say

if TYPE_CHECKING:
    from unidecouple.cli.command import Commands


def tokenizer(arguments: argparse.Namespace) -> int:
    """Make a tiny model with random weights and train its image tokenizer on synthetic images."""
    from unidecouple.world.scratch import Scratch, make_scratch

    make_scratch(load_config(Scratch, arguments.recipe), arguments.output, say)
    return OK


def align(arguments: argparse.Namespace) -> int:
    """Copy a checkpoint, its image tokens and image head aligned with its word embeddings: a start for text-to-image training."""
    from unidecouple.world.scratch import align as copy

    print(copy(arguments.checkpoint, arguments.output, say))
    return OK


def recipes() -> dict[type, str]:
    """Configuration class -> what a recipe of it is, for recipes given to another command."""
    from unidecouple.world.scratch import Scratch

    return {Scratch: "this describes a fresh tokenizer: `unidecouple tokenizer` takes it"}


def add_commands(commands: Commands) -> None:
    """``unidecouple tokenizer|align``."""
    fresh = add(commands, tokenizer, "tokenizer", recipe=True)
    fresh.add_argument("--output", type=Path, required=True, help="folder to write the new checkpoint to")
    copy = add(commands, align, "align")
    copy.add_argument("checkpoint", type=Path, help="folder of a checkpoint or of a training run")
    copy.add_argument("--output", type=Path, required=True, help="folder to write the result to")
