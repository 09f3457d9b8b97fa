"""Commands about what fine-tuning changed: ``guard`` finds what it broke, ``decouple`` mends it without training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from unidecouple.cli.command import FAILED, OK, add, number, say, whole

if TYPE_CHECKING:
    from unidecouple.cli.command import Commands


def guard(arguments: argparse.Namespace) -> int:
    """Compare a fine-tuned model with its base: what moved, and whether a task became worse (exit code 1) and where."""
    from unidecouple.delta.guard import PAGE, GuardOptions, verdict_lines
    from unidecouple.delta.guard import guard as compare
    from unidecouple.eval.suite import TEST_SEED, BenchmarkOptions, SyntheticSizes
    from unidecouple.train.launch import processes

    sizes = SyntheticSizes(num_images=arguments.num_images)
    with processes(arguments.device, bf16=False, kind="ddp") as place:
        options = GuardOptions(
            tuple(arguments.data),
            tuple(name for name in arguments.benchmarks.split(",") if name),
            BenchmarkOptions(arguments.benchmark_data, arguments.limit, TEST_SEED, sizes=sizes),
            arguments.samples,
            arguments.tolerance,
            not arguments.no_reverts,
            place.device,
            arguments.cache,
        )
        output = arguments.output or Path("guard") / Path(arguments.tuned).name
        content = compare(arguments.base, arguments.tuned, options, output, say)
    for line in verdict_lines(content):
        say(line)
    print(output / PAGE)
    return FAILED if content["worse"] else OK


def add_commands(commands: Commands) -> None:
    """``unidecouple guard`` and ``unidecouple decouple``."""
    command = add(commands, guard, "guard")
    _add_pair(command)
    command.add_argument("--output", type=Path, help="folder of guard.json and guard.html (default: guard/<name>)")
    command.add_argument("--benchmarks", default="", help="benchmarks to score before and after, with commas: pope,vqa,geneval")
    command.add_argument("--benchmark-data", type=Path, help="folder of their published files (default: their synthetic forms)")
    command.add_argument("--limit", type=whole(1), help="items of each part of a benchmark (default: all)")
    command.add_argument("--num-images", type=whole(1, 10_000), default=4, help="images per prompt (default: 4)")
    command.add_argument(
        "--tolerance", type=number(0), default=0.0, help="how much worse a task may be: nats per token, or share (default: 0)"
    )
    command.add_argument("--no-reverts", action="store_true", help="do not search for the modules where the damage sits")


def _add_pair(command: argparse.ArgumentParser) -> None:
    command.add_argument("base", help="checkpoint before fine-tuning: a folder in any layout, or a shipped base's name")
    command.add_argument("tuned", help="checkpoint after fine-tuning: a folder in any layout, or of a run")
    command.add_argument(
        "--data", nargs="+", default=[], help="held-out files of both tasks, in any format; or: synthetic (default: weights alone)"
    )
    command.add_argument("--samples", type=whole(2), default=64, help="most held-out samples per task (default: 64)")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (default: auto)")
    command.add_argument(
        "--cache", type=Path, default=Path("runs/cache"), help="folder of generated and encoded data (default: runs/cache)"
    )
