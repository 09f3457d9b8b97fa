"""Commands about what fine-tuning changed: ``guard`` finds what it broke, ``decouple`` mends it without training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unidecouple.cli.command import (
    FAILED,
    OK,
    add,
    add_cache,
    add_device,
    existing,
    number,
    recipes_and_overrides,
    say,
    share,
    whole,
)

if TYPE_CHECKING:
    from unidecouple.cli.command import Commands


def guard(arguments: argparse.Namespace) -> int:
    """Compare a fine-tuned model with its base: which weights changed, and whether and where a task became worse (exit code 1)."""
    from unidecouple import api
    from unidecouple.delta.guard import PAGE, verdict_lines

    options = api.GuardOptions(
        data=tuple(arguments.data),
        **_benchmarks(arguments),
        samples=arguments.samples,
        tolerance=arguments.tolerance,
        reverts=not arguments.no_reverts,
        cache=arguments.cache,
    )
    output = arguments.output or Path("guard") / Path(arguments.tuned).name
    content = api.guard(arguments.base, arguments.tuned, output, options, device=arguments.device, print_line=say)
    for line in verdict_lines(content):
        say(line)
    print(output / PAGE)
    return FAILED if content["worse"] else OK


def decouple(arguments: argparse.Namespace) -> int:
    """Combine a base and a fine-tuned model without training: one task computes as in the base, the other as fine-tuned."""
    import shlex
    import sys

    from unidecouple import api
    from unidecouple import config as configs
    from unidecouple.batch import Task
    from unidecouple.convert.options import shard_bytes
    from unidecouple.run import RunConfig

    budget = None if arguments.budget is None else shard_bytes(arguments.budget)
    chosen = (arguments.rank, arguments.energy, arguments.full, arguments.mode == "bits", budget)
    fidelity = api.Fidelity(*chosen) if any(value is not None and value is not False for value in chosen) else None
    distillation = None
    if arguments.prompts and not arguments.distill_steps:
        raise ValueError("--prompts has no effect without --distill-steps: give both, or leave it out")
    if arguments.distill_steps:
        existing(arguments.prompts, "--prompts")
        lines = arguments.prompts.read_text(encoding="utf-8").splitlines() if arguments.prompts else []
        prompts = [line.strip() for line in lines if line.strip()]
        run = configs.load(RunConfig, *recipes_and_overrides(arguments.recipe)) if arguments.recipe else None
        distillation = api.Distillation(arguments.distill_steps, prompts, arguments.learning_rate, recipe=run)
    options = api.DecoupleOptions(
        mode=arguments.mode,
        fidelity=fidelity,
        protect=Task.MMU if arguments.protect == "understanding" else Task.T2I,
        understanding=arguments.understanding,
        alpha=arguments.alpha,
        groups=tuple(name.strip() for name in arguments.groups.split(",") if name.strip()),
        tolerance=arguments.tolerance,
        data=tuple(arguments.data),
        samples=arguments.samples,
        **_benchmarks(arguments),
        distillation=distillation,
        cache=arguments.cache,
        command=shlex.join(["unidecouple", *sys.argv[1:]]),
        max_shard_bytes=shard_bytes(arguments.max_shard_size),
    )
    made = api.decouple(arguments.base, arguments.tuned, arguments.output, options, device=arguments.device, print_line=say)
    print(made)
    return OK


def _benchmarks(arguments: argparse.Namespace) -> dict[str, Any]:
    from unidecouple.eval.suite import TEST_SEED, BenchmarkOptions, SyntheticSizes

    sizes = SyntheticSizes(num_images=arguments.num_images)
    return {
        "benchmarks": tuple(name for name in arguments.benchmarks.split(",") if name),
        "benchmark_options": BenchmarkOptions(arguments.benchmark_data, arguments.limit, TEST_SEED, sizes=sizes),
    }


def add_commands(commands: Commands) -> None:
    """``unidecouple guard`` and ``unidecouple decouple``."""
    command = add(commands, guard, "guard")
    _add_pair(command)
    command.add_argument("--output", type=Path, help="folder of guard.json and guard.html (default: guard/<name>)")
    command.add_argument(
        "--tolerance",
        type=number(0),
        default=0.0,
        help="accepted loss of a task: nats per token for a loss, fraction for a score (default: 0)",
    )
    command.add_argument("--no-reverts", action="store_true", help="skip the search for the modules that cause the loss")
    mend = add(commands, decouple, "decouple")
    _add_pair(mend)
    mend.add_argument("--output", type=Path, required=True, help="folder to write the result to")
    mend.add_argument(
        "--mode",
        choices=("residual", "bits", "interpolate", "revert", "front"),
        default="residual",
        help="residual, bits: weights per task; interpolate, revert: one set; front: a page that compares them (default: residual)",
    )
    mend.add_argument("--rank", type=whole(1), help="residual: rank of every matrix (default: 32)")
    mend.add_argument("--energy", type=number(0, 1), help="residual: choose each rank to keep this fraction of the matrix's energy")
    mend.add_argument(
        "--budget",
        help="residual, bits: largest size of all weights per task, such as 200MB; it decides ranks, or the share of signs",
    )
    mend.add_argument("--full", action="store_true", help="residual: store both versions of every matrix, which is exact")
    mend.add_argument(
        "--distill-steps", type=whole(0), default=0, help="distillation steps on the logits of the fine-tuned model (default: 0)"
    )
    mend.add_argument("--prompts", type=Path, help="distillation: text file with one prompt per line")
    mend.add_argument(
        "--recipe", nargs="+", help="distillation: recipes and key=value overrides; the prompts of their data are used"
    )
    mend.add_argument(
        "--learning-rate", type=number(above=0), default=1e-3, help="distillation: learning rate of Adam (default: 0.001)"
    )
    mend.add_argument(
        "--protect",
        choices=("understanding", "generation"),
        default="understanding",
        help="the task that is computed as in the base (default: %(default)s)",
    )
    mend.add_argument("--understanding", help="a second fine-tuned model of the same base, which then computes understanding")
    mend.add_argument("--alpha", type=share, help="interpolate: 0 is the base, 1 the fine-tuned model (default: chosen on --data)")
    mend.add_argument(
        "--groups", default="", help="revert: module groups to take from the base, comma-separated (default: chosen on --data)"
    )
    mend.add_argument(
        "--tolerance", type=number(0), default=0.0, help="nats per token that a setting chosen on --data may lose (default: 0)"
    )
    mend.add_argument("--max-shard-size", default="5GB", help="largest size of one file of weights (default: 5GB)")


def _add_pair(command: argparse.ArgumentParser) -> None:
    command.add_argument("base", help="checkpoint before fine-tuning: a folder in any layout, or the name of a shipped base")
    command.add_argument("tuned", help="checkpoint after fine-tuning: a folder in any layout, or of a training run")
    command.add_argument(
        "--data",
        nargs="+",
        default=[],
        help="held-out data files: questions, prompts with images, text; or the word synthetic (default: compare weights only)",
    )
    command.add_argument("--samples", type=whole(2), default=64, help="largest number of held-out samples per task (default: 64)")
    add_device(command)
    add_cache(command)
    command.add_argument(
        "--benchmarks",
        default="",
        help="benchmarks to score before and after fine-tuning, comma-separated, such as pope,vqa,geneval,language",
    )
    command.add_argument(
        "--benchmark-data", type=Path, help="folder of the published benchmark files (default: the synthetic benchmark)"
    )
    command.add_argument("--limit", type=whole(1), help="items per split, subject or tag of a benchmark (default: all)")
    command.add_argument("--num-images", type=whole(1, 10_000), default=4, help="images per prompt (default: 4)")
