"""The command that scores a model, and the one that writes GenEval's prompts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from unidecouple.cli.command import OK, add, existing, whole
from unidecouple.cli.sampling import add_sampling_options
from unidecouple.plugins import BENCHMARKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unidecouple.cli.command import Commands
    from unidecouple.eval.session import Blind

_BLIND = ("grey", "text")  # those of ``eval.session``, whose import --help need not wait for


def evaluate(arguments: argparse.Namespace) -> int:
    """Score a model on benchmarks: answers and images are written as they come, then scored; a rerun continues."""
    from unidecouple import api

    if arguments.score_only and arguments.blind is not None:
        raise ValueError("--score-only asks nothing, so --blind has no effect: leave one out")
    existing(arguments.detections, "--detections")
    names = (
        *("limit", "seed", "device", "dtype", "parser", "score_only", "detections", "art", "batch_size", "max_new_tokens"),
        *("num_images", "guidance_scale", "temperature", "top_k", "top_p"),
    )
    options = api.EvalOptions(blind=_blind(arguments.blind), **{name: getattr(arguments, name) for name in names})
    api.evaluate(arguments.model, arguments.benchmarks.split(","), arguments.output, arguments.data, options)
    return OK


def geneval_prompts(arguments: argparse.Namespace) -> int:
    """Write GenEval's 553 prompts, equal to the published evaluation_metadata.jsonl byte for byte."""
    from unidecouple.eval.geneval_prompts import write_official

    print(write_official(arguments.output))
    return OK


def _blind(asked: Sequence[Blind] | None) -> tuple[Blind, ...]:
    """The ways that --blind names; alone it means all."""
    from unidecouple.eval.session import BLIND

    return () if asked is None else tuple(way for way in BLIND if way in asked or not asked)


def add_commands(commands: Commands) -> None:
    """``unidecouple eval`` and ``unidecouple geneval-prompts``."""
    command = add(commands, evaluate, "eval")
    command.add_argument("model", help="folder of the checkpoint, or of a run, or a shipped base: understanding, unified")
    command.add_argument("--benchmarks", required=True, help=f"comma-separated: {', '.join(BENCHMARKS)}")
    command.add_argument("--data", type=Path, help="folder of the published files (default: the synthetic benchmark)")
    command.add_argument("--output", type=Path, required=True, help="folder of answers, images and score cards")
    command.add_argument("--limit", type=whole(1), help="only the first so many of each split, subject, subtask or tag")
    command.add_argument("--seed", type=whole(0), help="of synthetic scenes and generated images (default: as runs are scored)")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (default: auto)")
    command.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights (default: float32)")
    command.add_argument(
        "--parser",
        nargs="+",
        default=[],
        help="how answers are read: official, llava, exact, lmms-eval, vlmevalkit; VQA: exact, vqav2",
    )
    command.add_argument(
        "--blind",
        nargs="*",
        choices=_BLIND,
        help="also ask about a grey image in place of each, and with no image at all (default: both)",
    )
    command.add_argument("--score-only", action="store_true", help="score what is in the folder; loads no model")
    command.add_argument("--detections", type=Path, help="geneval: what a detector saw (official results.jsonl, or our own form)")
    command.add_argument("--art", type=Path, help="draw the synthetic questions with these emoji (PNG files by code point)")
    command.add_argument("--batch-size", type=whole(1, 1 << 16), default=32, help="questions asked together (default: 32)")
    command.add_argument(
        "--max-new-tokens", type=whole(1, 1 << 20), help="longest answer (default: 6 for the synthetic benchmark, else 32)"
    )
    command.add_argument("--num-images", type=whole(1, 10_000), default=4, help="images per prompt (default: 4)")
    add_sampling_options(command, "guidance_scale", "temperature", "top_k", "top_p")
    prompts = add(commands, geneval_prompts, "geneval-prompts")
    prompts.add_argument("--output", type=Path, required=True, help="folder to write")
