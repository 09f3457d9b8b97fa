"""Commands on users' own data."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from unidecouple.cli.command import FAILED, OK, add, add_group, progress_bar, share, whole

if TYPE_CHECKING:
    from unidecouple.cli.command import Commands
    from unidecouple.data.check import Findings


def columns(text: str) -> dict[str, str]:
    """A type of argparse's: a column map."""
    from unidecouple.data.columns import parse_columns

    try:
        return parse_columns(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def check(arguments: argparse.Namespace) -> int:
    """Check data files: counts, token lengths and the first problems with file and line; fails if too many records are bad."""
    from unidecouple.convert.load import load_processor, longest_sequence
    from unidecouple.data.check import check as read_all
    from unidecouple.data.formats import open_readers
    from unidecouple.data.pictures import ImagePreprocessor
    from unidecouple.data.sequences import SequenceBuilder
    from unidecouple.inputs import printable

    processor = load_processor(arguments.model)
    longest = arguments.max_length or longest_sequence(arguments.model)
    code = OK
    found: list[Findings] = []
    for path in arguments.path:
        readers = open_readers(path, arguments.data_type, arguments.root, arguments.cache, columns=arguments.columns)
        findings = read_all(
            path,
            readers,
            ImagePreprocessor(processor),
            SequenceBuilder(processor),
            longest,
            progress_bar(f"checking {path.name}", "records"),
        )
        print(printable("\n".join(findings.lines())), flush=True)
        for other in found:
            if shared := findings.shared(other):
                print(f"  shared    {shared:,} records with {other.path}: none of them is held out", flush=True)
        found.append(findings)
        if not findings.samples and not findings.problems:
            print(f"unidecouple: {printable(str(path))} holds no record", file=sys.stderr)
            code = FAILED
        if findings.bad_ratio > arguments.max_bad_ratio:
            print(f"unidecouple: {path}: more than --max-bad-ratio={arguments.max_bad_ratio} is bad", file=sys.stderr)
            code = FAILED
    return code


def preview(arguments: argparse.Namespace) -> int:
    """Write an HTML page with samples of each task as the model receives them, and mark the tokens that have a loss."""
    from unidecouple.convert.load import load_processor
    from unidecouple.data.formats import open_readers
    from unidecouple.data.pictures import ImagePreprocessor
    from unidecouple.data.preview import write_preview
    from unidecouple.data.sequences import SequenceBuilder

    processor = load_processor(arguments.model)
    readers = open_readers(arguments.path, arguments.data_type, arguments.root, arguments.cache, columns=arguments.columns)
    preprocessor, builder = ImagePreprocessor(processor), SequenceBuilder(processor)
    print(write_preview(readers, preprocessor, builder, arguments.output, arguments.samples, arguments.seed))
    return OK


def encode(arguments: argparse.Namespace) -> int:
    """Encode the images to be generated as image tokens, once; after an interruption the same command continues."""
    from unidecouple.convert.load import load
    from unidecouple.data.encode import EncodeOptions
    from unidecouple.data.encode import encode as write_cache
    from unidecouple.data.formats import open_readers
    from unidecouple.data.pictures import ImagePreprocessor
    from unidecouple.shares import local_rank, share_of_environment
    from unidecouple.train.launch import device_of

    share = share_of_environment()
    place = device_of(arguments.device, local_rank())
    model, processor = load(arguments.model)
    readers = open_readers(arguments.path, arguments.data_type, arguments.root, arguments.cache, columns=arguments.columns)
    manifest = write_cache(
        readers,
        model.model.vqmodel.to(place),
        ImagePreprocessor(processor),
        arguments.output,
        EncodeOptions(
            batch_size=arguments.batch_size, shard_size=arguments.shard_size, max_bad_ratio=arguments.max_bad_ratio, share=share
        ),
        progress_bar(f"encoding {arguments.path.name}", "records"),
    )
    if manifest is None:
        print(f"{arguments.output}: share {share.rank + 1} of {share.size} is done; the last share completes the cache")
        return OK
    size = f"{manifest.count:,} images of {manifest.tokens_per_image} tokens"
    print(f"{arguments.output}: {size}; {manifest.skipped:,} records left out")
    return OK


def add_commands(commands: Commands) -> None:
    """``unidecouple data check|preview|encode``."""
    group = add_group(commands, "data", "Check, look at and encode your own data.")
    parsers = {}
    for name, function in (("check", check), ("preview", preview), ("encode", encode)):
        parsers[name] = command = add(group, function, name)
        command.add_argument("path", type=Path, nargs="+" if name == "check" else None, help="data file, folder, or pattern with *")
        command.add_argument(
            "--data-type",
            help="format (default: by content): messages, llava, qa, flat, webdataset, parquet, datasets, image_tokens",
        )
        command.add_argument(
            "--root", type=Path, help="folder that relative image paths start from (default: the folder of the data file)"
        )
        command.add_argument(
            "--columns",
            type=columns,
            metavar="NAME=COLUMN,...",
            help="map our field names to your keys or columns, such as question=q,answer=a,image=path",
        )
        command.add_argument("--cache", type=Path, help="folder to keep file indices in for later runs (default: not kept)")
    for name in ("check", "preview"):
        parsers[name].add_argument(
            "--model",
            default="understanding",
            help="checkpoint whose tokenizer and image processor are used (default: understanding)",
        )
    for name in ("check", "encode"):
        parsers[name].add_argument(
            "--max-bad-ratio",
            type=share,
            default=0.01,
            help="fail if more than this fraction of the records is bad (default: 0.01)",
        )
    parsers["check"].add_argument(
        "--max-length", type=whole(1), help="report samples with more tokens than this (default: the model's context length)"
    )
    parsers["preview"].add_argument("--output", type=Path, required=True, help="HTML page to write")
    parsers["preview"].add_argument("--samples", type=whole(1), default=4, help="samples per task (default: 4)")
    parsers["preview"].add_argument("--seed", type=whole(0), default=0, help="seed that chooses the samples (default: 0)")
    parsers["encode"].add_argument("--model", required=True, help="checkpoint whose image tokenizer encodes the images")
    parsers["encode"].add_argument("--output", type=Path, required=True, help="folder to write the encoded data to")
    parsers["encode"].add_argument("--batch-size", type=whole(1), default=32, help="images per encoding batch (default: 32)")
    parsers["encode"].add_argument(
        "--shard-size",
        type=whole(1),
        default=10_000,
        help="records per file, the unit of work of several processes (default: 10000)",
    )
    parsers["encode"].add_argument(
        "--device", default="auto", help="device to compute on: auto, cpu, cuda, cuda:1, … (default: auto, a GPU if there is one)"
    )
