"""The command that scores a model, and the one that writes GenEval's prompts."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from unidecouple.cli.command import OK, add, existing, say, whole
from unidecouple.cli.sampling import add_sampling_options, sampling_of
from unidecouple.plugins import BENCHMARKS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from unidecouple.cli.command import Commands
    from unidecouple.eval.benchmark import BenchmarkResult
    from unidecouple.eval.card import EvalSetup
    from unidecouple.eval.model import EvalModel
    from unidecouple.eval.session import Blind
    from unidecouple.eval.suite import BenchmarkOptions
    from unidecouple.train.parallel import Parallel

_BLIND = ("grey", "text")  # those of ``eval.session``, whose import --help need not wait for
_PROGRESS_EVERY = 5.0  # seconds
_SHOWN = 12


def evaluate(arguments: argparse.Namespace) -> int:
    """Score a model on benchmarks: answers and images are written as they come, then scored; a rerun continues."""
    from unidecouple.eval.answering import WorkShare
    from unidecouple.eval.benchmark import GenerationBenchmark
    from unidecouple.eval.scores_file import SCORES, write_scores
    from unidecouple.eval.session import EvalSession
    from unidecouple.eval.suite import open_benchmarks
    from unidecouple.ownership import check_file
    from unidecouple.train.launch import processes

    if arguments.score_only and arguments.blind is not None:
        raise ValueError("--score-only asks nothing, so --blind has no effect: leave one out")
    existing(arguments.detections, "--detections")
    check_file(arguments.output / SCORES)
    opened = open_benchmarks(arguments.benchmarks.split(","), _options(arguments))
    with processes(arguments.device, bf16=False, kind="ddp") as place:
        model, setup = _model(arguments, place)
        share = WorkShare(place.rank, place.size, _waiting(place))
        progress = _progress() if place.first else lambda what, done, of: None
        session = EvalSession(arguments.output, setup, arguments.batch_size, _blind(arguments.blind), share, progress)
        for benchmark in opened:
            if model is not None:
                session.run(benchmark, model)
            if place.first:
                detections = arguments.detections if isinstance(benchmark, GenerationBenchmark) else None
                _show(benchmark.name, session.score(benchmark, detections), session.folder(benchmark))
        if place.first:
            write_scores(arguments.output, arguments.model)
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


def _options(arguments: argparse.Namespace) -> BenchmarkOptions:
    from unidecouple.eval.suite import TEST_SEED, BenchmarkOptions, SyntheticSizes

    if arguments.art is not None and (arguments.data is not None or "geneval" in arguments.benchmarks):
        raise ValueError("--art draws the synthetic questions only: leave out --data, and geneval among the benchmarks")
    sizes = SyntheticSizes(num_images=arguments.num_images)
    seed = TEST_SEED if arguments.seed is None else arguments.seed
    return BenchmarkOptions(arguments.data, arguments.limit, seed, tuple(arguments.parser), sizes, arguments.art)


def _model(arguments: argparse.Namespace, place: Parallel) -> tuple[EvalModel | None, EvalSetup]:
    """The model, unless only files are scored, and what the card records about it."""
    import dataclasses

    import torch

    from unidecouple.convert.load import checkpoint_folder, load
    from unidecouple.eval.card import EvalSetup, weights_of
    from unidecouple.eval.model import EvalModel
    from unidecouple.eval.suite import TEST_SEED
    from unidecouple.generate.sampling import image_sampling

    if arguments.score_only:
        return None, EvalSetup(arguments.model, {}, {}, arguments.dtype, str(place.device))
    tokens = arguments.max_new_tokens or (_WORLD_TOKENS if arguments.data is None else _FILES_TOKENS)
    seed = TEST_SEED if arguments.seed is None else arguments.seed
    model, processor = load(arguments.model, getattr(torch, arguments.dtype))
    sampling = sampling_of(arguments, image_sampling(model.generation_config))
    settings = {"seed": seed, "max_new_tokens": tokens, **dataclasses.asdict(sampling)}
    weights = weights_of(checkpoint_folder(arguments.model)) if place.first else {}
    setup = EvalSetup(arguments.model, weights, settings, arguments.dtype, str(place.device))
    return EvalModel(model.to(place.device), processor, tokens, sampling, seed), setup


_WORLD_TOKENS, _FILES_TOKENS = 6, 32
"""Longest answers: as training scores the synthetic benchmarks, and enough for an option's text."""


def _waiting(place: Parallel) -> Callable[[], None]:
    if place.size == 1:
        return lambda: None
    import torch.distributed as dist

    return dist.barrier


def _progress() -> Callable[[str, int, int], None]:
    """A line every few seconds, and one at each end."""
    last = [0.0]

    def show(what: str, done: int, of: int) -> None:
        if done == of or time.monotonic() - last[0] > _PROGRESS_EVERY:
            last[0] = time.monotonic()
            say(f"{what}: {done} of {of}")

    return show


def _show(name: str, result: BenchmarkResult | None, folder: Path) -> None:
    """Print the first rows."""
    from unidecouple.eval.card import intervals

    if result is None:
        say(f"{name}: images are in {folder / 'images'}; detect what they show and score with --score-only --detections FILE")
        return
    ends = intervals(result)
    for row in result.scores[:_SHOWN]:
        low, high = ends.get(row.metric, (None, None))
        between = "" if low is None or high is None else f"  ({low:.3f} to {high:.3f})"
        say(f"{name} {row.metric}: {row.value:.3f}{between}")
    unread = ", ".join(f"{count} {kind}" for kind, count in result.failures.items() if count)
    say(f"{name}: {unread or 'everything was read'}; all rows in {folder / 'card.md'}")


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
        help="also ask about a grey picture in place of each, and with no picture at all (default: both)",
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
