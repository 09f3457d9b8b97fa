"""Commands that make bases: tiny models from nothing, and copies of checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from unidecouple.cli.command import OK, add, load_config, say

if TYPE_CHECKING:
    from unidecouple.cli.command import Commands


def tokenizer(arguments: argparse.Namespace) -> int:
    """Make a tiny model with random weights and fit its image tokenizer to the world."""
    from unidecouple.train.scratch import Scratch, make_scratch

    make_scratch(load_config(Scratch, arguments.recipe), arguments.output, say)
    return OK


def align(arguments: argparse.Namespace) -> int:
    """Copy a checkpoint with its image tokens and their head aligned with its words, for a model that shall learn to draw."""
    from unidecouple.train.scratch import align as copy

    print(copy(arguments.checkpoint, arguments.output, say))
    return OK


def export(arguments: argparse.Namespace) -> int:
    """Copy a checkpoint's model to a folder, its frozen tokenizer in half precision, as the shipped bases are."""
    from unidecouple.train.scratch import export as copy

    print(copy(arguments.checkpoint, arguments.output, arguments.ema))
    return OK


def add_commands(commands: Commands) -> None:
    """``unidecouple tokenizer|align|export``."""
    fresh = add(commands, tokenizer, "tokenizer", recipe=True)
    fresh.add_argument("--output", type=Path, required=True, help="folder of the new checkpoint")
    finished = add(commands, export, "export")
    finished.add_argument("--ema", action="store_true", help="the averaged weights (of a run with ema_decay), not the last step's")
    for copy in (add(commands, align, "align"), finished):
        copy.add_argument("checkpoint", type=Path, help="folder of the checkpoint, or of a run")
        copy.add_argument("--output", type=Path, required=True, help="folder to write")
