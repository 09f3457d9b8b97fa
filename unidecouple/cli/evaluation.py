"""The command that scores a model, and the one that writes GenEval's prompts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from unidecouple.cli.command import OK, add, add_device, existing, whole
from unidecouple.cli.sampling import add_sampling_options
from unidecouple.plugins import BENCHMARKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unidecouple.cli.command import Commands
    from unidecouple.eval.session import Blind

_BLIND = ("grey", "text")  # those of ``eval.session``, whose import --help need not wait for


def evaluate(arguments: argparse.Namespace) -> int:
    """Score a model on benchmarks; answers and images are saved at once, so a rerun continues after an interruption."""
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
    command.add_argument("model", help="folder of a checkpoint or of a training run, or a shipped base: understanding, unified")
    command.add_argument("--benchmarks", required=True, help=f"benchmarks to score, comma-separated: {', '.join(BENCHMARKS)}")
    command.add_argument("--data", type=Path, help="folder of the published benchmark files (default: the synthetic benchmark)")
    command.add_argument("--output", type=Path, required=True, help="folder to write answers, images and score cards to")
    command.add_argument(
        "--limit", type=whole(1), help="use only this many items per split, subject, subtask or tag (default: all)"
    )
    command.add_argument(
        "--seed", type=whole(0), help="seed of synthetic scenes and generated images (default: the one used after training)"
    )
    add_device(command)
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="data type of the weights (default: float32)"
    )
    command.add_argument(
        "--parser",
        nargs="+",
        default=[],
        help="parser of answers: official, llava, exact, lmms-eval, vlmevalkit; VQA: exact, vqav2",
    )
    command.add_argument(
        "--blind",
        nargs="*",
        choices=_BLIND,
        help="also ask with a grey image (grey) and without an image (text), as a baseline (without a value: both)",
    )
    command.add_argument("--score-only", action="store_true", help="score the answers and images in --output; loads no model")
    command.add_argument(
        "--detections", type=Path, help="geneval: detections of an object detector (the official results.jsonl, or our format)"
    )
    command.add_argument(
        "--art", type=Path, help="folder of other emoji for the synthetic benchmark (PNG files named by code point)"
    )
    command.add_argument("--batch-size", type=whole(1, 1 << 16), default=32, help="questions per batch (default: 32)")
    command.add_argument(
        "--max-new-tokens",
        type=whole(1, 1 << 20),
        help="most tokens of an answer (default: 6 for the synthetic benchmark, else 32)",
    )
    command.add_argument("--num-images", type=whole(1, 10_000), default=4, help="images per prompt (default: 4)")
    add_sampling_options(command, "guidance_scale", "temperature", "top_k", "top_p")
    prompts = add(commands, geneval_prompts, "geneval-prompts")
    prompts.add_argument("--output", type=Path, required=True, help="folder to write the result to")
