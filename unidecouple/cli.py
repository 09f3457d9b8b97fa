"""The command line: one function a command, imports inside, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from unidecouple import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from unidecouple.run import RunConfig

T = TypeVar("T")
OK, FAILED, INTERRUPTED = 0, 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; user mistakes are one clear line on standard error, no traceback."""
    arguments = _parser().parse_args(argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        code: int = arguments.command(arguments)
    except (ValueError, OSError, ArithmeticError) as error:
        print(f"unidecouple: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("unidecouple: interrupted; finished runs are kept, and the same command resumes the others", file=sys.stderr)
        return INTERRUPTED
    return code


def experiment(arguments: argparse.Namespace) -> int:
    """Run a grid of training runs and write results.json and report.html."""
    from unidecouple.experiment.plan import Experiment
    from unidecouple.experiment.runner import ExperimentError, run_experiment

    chosen = _load(Experiment, arguments.recipe)
    folder = arguments.output or Path("runs") / chosen.name
    command = "unidecouple experiment " + " ".join(arguments.recipe)
    try:
        results = run_experiment(chosen, folder, arguments.cache, arguments.workers or os.cpu_count() or 1, command)
    except ExperimentError as error:
        print(f"unidecouple: {error}", file=sys.stderr)
        return FAILED
    print(f"results: {results}", flush=True)
    return report(argparse.Namespace(folder=folder))


def train(arguments: argparse.Namespace) -> int:
    """Train, score and diagnose one run; resumes by itself."""
    from unidecouple.run import RunConfig
    from unidecouple.train.execute import execute
    from unidecouple.train.loop import InterruptedRunError

    run = _load(RunConfig, arguments.recipe)
    if arguments.dry_run:
        return _dry_run(run, arguments.cache)
    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda number, frame: stop.set())
    try:
        execute(run, arguments.output, arguments.cache, lambda line: print(line, flush=True), stop)
    except InterruptedRunError as error:
        print(f"unidecouple: {error}. The same command resumes it", file=sys.stderr)
        return INTERRUPTED
    return OK


def _dry_run(run: RunConfig, cache: Path) -> int:
    from unidecouple.plan.stages import Question
    from unidecouple.plan.stages import plan as stages
    from unidecouple.plan.text import memory_of_one
    from unidecouple.train.dry_run import describe

    describe(run, cache, lambda line: print(line, flush=True))
    question = Question((1,), dtype="bf16" if run.bf16 else "fp32")
    print("\nmemory of one process at the peak of a step, computed (see docs/scale.md)")
    print("\n".join(memory_of_one(stages(run, question), run.gradient_checkpointing)))
    return OK


def plan(arguments: argparse.Namespace) -> int:
    """Say on paper what a run needs on other hardware: memory, FLOPs, communication, time, cost, and what breaks first."""
    import json

    from unidecouple.plan.load import Lengths
    from unidecouple.plan.stages import Question
    from unidecouple.plan.stages import plan as stages
    from unidecouple.plan.text import lines, plain
    from unidecouple.run import RunConfig

    run = _load(RunConfig, arguments.recipe)
    lengths = Lengths(arguments.mmu_length, arguments.t2i_length)
    samples = None if arguments.samples is None else int(arguments.samples)
    question = Question(
        tuple(arguments.gpus), arguments.device, arguments.dtype, arguments.batch_size, lengths, samples, arguments.price
    )
    plans = stages(run, question)
    print(json.dumps(plain(run, question, plans), indent=1) if arguments.json else "\n".join(lines(run, question, plans)))
    return OK


def report(arguments: argparse.Namespace) -> int:
    """Write report.html anew from an experiment's folder."""
    from unidecouple.report import write_report

    print(write_report(arguments.folder))
    return OK


def tokenizer(arguments: argparse.Namespace) -> int:
    """Make a tiny model with random weights and fit its image tokenizer to the world."""
    from unidecouple.train.scratch import Scratch, make_scratch

    make_scratch(_load(Scratch, arguments.recipe), arguments.output, lambda line: print(line, flush=True))
    return OK


def align(arguments: argparse.Namespace) -> int:
    """Copy a checkpoint with its image tokens and their head aligned with its words, for a model that shall learn to draw."""
    from unidecouple.train.scratch import align as copy

    print(copy(arguments.checkpoint, arguments.output, lambda line: print(line, flush=True)))
    return OK


def export(arguments: argparse.Namespace) -> int:
    """Copy a checkpoint's model to a folder, its frozen tokenizer in half precision, as the shipped bases are."""
    from unidecouple.train.scratch import export as copy

    print(copy(arguments.checkpoint, arguments.output, arguments.ema))
    return OK


def data_check(arguments: argparse.Namespace) -> int:
    """Say what is in sources of data, and every problem with file and line; fails where too many records are bad."""
    from unidecouple.data.check import check
    from unidecouple.data.formats import open_readers
    from unidecouple.data.pictures import Shaper
    from unidecouple.data.sequences import SequenceBuilder
    from unidecouple.train.build import load_processor

    processor = load_processor(arguments.model)
    code = OK
    for path in arguments.path:
        readers = open_readers(path, arguments.data_type, arguments.root, arguments.cache)
        findings = check(
            path, readers, Shaper(processor), SequenceBuilder(processor), arguments.max_length, _progress(f"checking {path.name}")
        )
        print("\n".join(findings.lines()), flush=True)
        if findings.bad_ratio > arguments.max_bad_ratio:
            print(f"unidecouple: {path}: more than --max-bad-ratio={arguments.max_bad_ratio} is bad", file=sys.stderr)
            code = FAILED
    return code


def data_preview(arguments: argparse.Namespace) -> int:
    """Write a page with samples of each task as the model meets them: pictures, turns, and which tokens bear loss."""
    from unidecouple.data.formats import open_readers
    from unidecouple.data.pictures import Shaper
    from unidecouple.data.preview import write_preview
    from unidecouple.data.sequences import SequenceBuilder
    from unidecouple.train.build import load_processor

    processor = load_processor(arguments.model)
    readers = open_readers(arguments.path, arguments.data_type, arguments.root, arguments.cache)
    shaper, builder = Shaper(processor), SequenceBuilder(processor)
    print(write_preview(readers, shaper, builder, arguments.output, arguments.samples, arguments.seed))
    return OK


def data_encode(arguments: argparse.Namespace) -> int:
    """Encode the pictures to be drawn as image tokens, once; an interrupted encoding goes on with the same command."""
    from unidecouple.data.encode import encode
    from unidecouple.data.formats import open_readers
    from unidecouple.data.pictures import Shaper
    from unidecouple.train.build import load

    model, processor = load(arguments.model)
    readers = open_readers(arguments.path, arguments.data_type, arguments.root, arguments.cache)
    manifest = encode(
        readers,
        model.model.vqmodel.to(arguments.device),
        Shaper(processor),
        arguments.output,
        batch_size=arguments.batch_size,
        max_bad_ratio=arguments.max_bad_ratio,
        progress=_progress(f"encoding {arguments.path.name}"),
    )
    size = f"{manifest.count:,} pictures of {manifest.tokens_per_image} tokens"
    print(f"{arguments.output}: {size}; {manifest.skipped:,} records left out")
    return OK


def _progress(what: str) -> Callable[[int, int], None]:
    """A progress bar on standard error where that is a terminal."""
    from tqdm import tqdm

    bar = tqdm(desc=what, unit=" records", disable=not sys.stderr.isatty(), leave=False)

    def show(done: int, of: int) -> None:
        bar.total = of
        bar.update(done - bar.n)
        if done == of:
            bar.close()

    return show


def convert(arguments: argparse.Namespace) -> int:
    """Copy a checkpoint between deepseek-ai's layout, transformers' and ours, with another structure if asked."""
    from unidecouple.convert.convert import convert as copy
    from unidecouple.convert.options import shard_bytes, structure, task
    from unidecouple.convert.steps import Conversion
    from unidecouple.train.build import checkpoint_folder

    wanted = Conversion(
        arguments.to,
        structure(arguments),
        task(arguments.task),
        arguments.merge_lora,
        shard_bytes(arguments.max_shard_size),
        arguments.seed,
    )
    copy(checkpoint_folder(str(arguments.checkpoint)), arguments.output, wanted, lambda line: print(line, flush=True))
    return OK


def adapter_save(arguments: argparse.Namespace) -> int:
    """Save only what training changed beyond a base: low-rank updates and small parts, in PEFT's format where it can hold them."""
    from unidecouple.adapters.save import save

    wanted = (arguments.base, arguments.seed, arguments.with_experts)
    save(str(arguments.checkpoint), arguments.output, *wanted, lambda line: print(line, flush=True))
    return OK


def adapter_load(arguments: argparse.Namespace) -> int:
    """Rebuild the whole checkpoint from its base and a saved adapter, bit for bit."""
    from unidecouple.adapters.load import write

    write(arguments.base, arguments.adapter, arguments.output, lambda line: print(line, flush=True))
    return OK


def _load(schema: type[T], recipe: Sequence[str]) -> T:
    """A configuration from the command line's YAML files and key=value overrides."""
    from unidecouple import config

    files = [entry for entry in recipe if "=" not in entry or Path(entry).is_file()]  # a run's folder may be named "...@lr=0.3"
    return config.load(schema, [Path(entry) for entry in files], [entry for entry in recipe if entry not in files])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="unidecouple", description="Train unified multimodal models on both tasks, and see the conflict."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(function: object, *, recipe: bool) -> argparse.ArgumentParser:
        name, text = getattr(function, "__name__", ""), getattr(function, "__doc__", "")
        command = commands.add_parser(name, help=text.rstrip("."), description=text)
        command.set_defaults(command=function)
        if recipe:
            command.add_argument(
                "recipe", nargs="+", help="YAML recipes, merged left to right, and key=value overrides of their keys"
            )
        return command

    grid = add(experiment, recipe=True)
    grid.add_argument("--output", type=Path, help="folder of the experiment (default: runs/<name>)")
    grid.add_argument("--workers", type=int, help="runs at a time, one thread each (default: number of cores)")
    one = add(train, recipe=True)
    one.add_argument("--output", type=Path, required=True, help="folder of the run")
    one.add_argument("--dry-run", action="store_true", help="say what the run would do: configuration, weights, data, memory")
    for command in (grid, one):
        command.add_argument(
            "--cache", type=Path, default=Path("runs/cache"), help="folder of drawn and encoded data (default: runs/cache)"
        )
    paper = add(plan, recipe=True)
    paper.add_argument("--gpus", type=int, nargs="+", default=[8], help="numbers of devices to plan for (default: 8)")
    paper.add_argument("--device", default="h100", help="h100, h200, a100, b200, 4090 or cpu (default: h100)")
    paper.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="type of the computation (default: bf16)")
    paper.add_argument("--batch-size", type=int, help="samples a device and step, both tasks together (default: the recipe's)")
    paper.add_argument("--mmu-length", type=int, help="tokens of an understanding sample, picture included (default: the recipe's)")
    paper.add_argument("--t2i-length", type=int, help="tokens of a generation sample, picture included (default: the recipe's)")
    paper.add_argument("--samples", type=float, help="samples of the whole run (default: max_steps steps of one device)")
    paper.add_argument("--price", type=float, help="price of a device hour, for costs in the same currency")
    paper.add_argument("--json", action="store_true", help="print all figures as JSON")
    page = add(report, recipe=False)
    page.add_argument("folder", type=Path, help="folder of an experiment")
    fresh = add(tokenizer, recipe=True)
    fresh.add_argument("--output", type=Path, required=True, help="folder of the new checkpoint")
    layouts = add(convert, recipe=False)
    finished = add(export, recipe=False)
    finished.add_argument("--ema", action="store_true", help="the averaged weights (of a run with ema_decay), not the last step's")
    for copy in (add(align, recipe=False), finished, layouts):
        copy.add_argument("checkpoint", type=Path, help="folder of the checkpoint, or of a run")
        copy.add_argument("--output", type=Path, required=True, help="folder to write")
    _add_conversion(layouts)
    _add_data_commands(commands)
    _add_adapter_commands(commands)
    return parser


def _add_data_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``unidecouple data check|preview|encode``."""
    text = "Check, look at and encode your own data."
    group = commands.add_parser("data", help=text.rstrip("."), description=text).add_subparsers(required=True, metavar="COMMAND")
    parsers = {}
    for function in (data_check, data_preview, data_encode):
        name, text = function.__name__.removeprefix("data_"), function.__doc__ or ""
        parsers[name] = command = group.add_parser(name, help=text.rstrip("."), description=text)
        command.set_defaults(command=function)
        command.add_argument("path", type=Path, nargs="+" if name == "check" else None, help="file, folder, or pattern with *")
        command.add_argument(
            "--data-type", help="force a format: messages, llava, flat, webdataset, parquet, datasets, image_tokens"
        )
        command.add_argument("--root", type=Path, help="where relative names of pictures start (default: the file's folder)")
        command.add_argument("--cache", type=Path, help="folder that keeps indices (default: none is kept)")
    for name in ("check", "preview"):
        parsers[name].add_argument(
            "--model", default="understanding", help="checkpoint whose processor is used (default: understanding)"
        )
    for name in ("check", "encode"):
        parsers[name].add_argument(
            "--max-bad-ratio", type=float, default=0.01, help="share of bad records above which it fails (default: 0.01)"
        )
    parsers["check"].add_argument("--max-length", type=int, help="tokens above which a sample is a problem (default: no limit)")
    parsers["preview"].add_argument("--output", type=Path, required=True, help="HTML page to write")
    parsers["preview"].add_argument("--samples", type=int, default=4, help="samples of each task (default: 4)")
    parsers["preview"].add_argument("--seed", type=int, default=0, help="which samples (default: 0)")
    parsers["encode"].add_argument("--model", required=True, help="checkpoint whose image tokenizer encodes")
    parsers["encode"].add_argument("--output", type=Path, required=True, help="folder of the cache")
    parsers["encode"].add_argument("--batch-size", type=int, default=32, help="pictures encoded together (default: 32)")
    parsers["encode"].add_argument("--device", default="cpu", help="cpu, cuda, … (default: cpu)")


def _add_adapter_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``unidecouple adapter save|load``."""
    text = "Save what training changed as a small adapter, and rebuild the checkpoint from it."
    group = commands.add_parser("adapter", help=text.rstrip("."), description=text).add_subparsers(required=True, metavar="COMMAND")
    parsers = {}
    for function in (adapter_save, adapter_load):
        name, text = function.__name__.removeprefix("adapter_"), function.__doc__ or ""
        parsers[name] = group.add_parser(name, help=text.rstrip("."), description=text)
        parsers[name].set_defaults(command=function)
    parsers["save"].add_argument("checkpoint", type=Path, help="folder of the checkpoint, or of a run")
    parsers["save"].add_argument("--base", help="checkpoint it was trained from (default: what the run's run.yaml says)")
    parsers["save"].add_argument("--seed", type=int, help="the run's, for a dense base's routers (default: run.yaml's, or 0)")
    parsers["save"].add_argument("--with-experts", action="store_true", help="keep experts that training changed, in full")
    parsers["load"].add_argument("base", help="checkpoint that the adapter belongs to, or a shipped base's name")
    parsers["load"].add_argument("adapter", type=Path, help="folder that `unidecouple adapter save` wrote")
    for command in parsers.values():
        command.add_argument("--output", type=Path, required=True, help="folder to write")


def _add_conversion(command: argparse.ArgumentParser) -> None:
    layouts, structures = ("unidecouple", "transformers", "deepseek"), ("dense", "moe", "ta_moe")
    command.add_argument("--to", choices=layouts, default=layouts[0], help="layout of the result (default: unidecouple)")
    command.add_argument("--structure", choices=structures, help="structure of the result (default: as it is)")
    command.add_argument("--experts-per-task", type=int, help="experts in a task's group of a new mixture (default: 2)")
    command.add_argument("--num-experts-per-tok", type=int, help="experts a token is sent to (default: 1)")
    command.add_argument(
        "--no-shared-expert", dest="shared_expert", action="store_const", const=False, help="a new mixture without a shared expert"
    )
    command.add_argument("--alpha-init", type=float, help="weight of the shared expert at the start (default: 0.5)")
    command.add_argument("--moe-layers", help="layers that become mixtures, as 0,4-7 (default: all)")
    command.add_argument(
        "--context-router", action="store_const", const=True, help="the first mixture's task router looks at the tokens before"
    )
    command.add_argument("--task", choices=("mmu", "t2i"), help="keep only what serves this task; --structure dense then folds it")
    command.add_argument("--merge-lora", action="store_true", help="add low-rank updates to their weights (other layouts: always)")
    command.add_argument("--max-shard-size", default="5GB", help="most bytes of one file of weights (default: 5GB)")
    command.add_argument("--seed", type=int, default=0, help="of new routers (default: 0)")


if __name__ == "__main__":
    sys.exit(main())
