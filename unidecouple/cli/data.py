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
    """Say what is in sources of data, and the first problems with file and line; fails where too many records are bad."""
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
    """Write a page with samples of each task as the model gets them: images, turns, and which tokens have a loss."""
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
    """Encode the images to be generated as image tokens, once; an interrupted encoding goes on with the same command."""
    from unidecouple.convert.load import load
    from unidecouple.data.encode import EncodeOptions
    from unidecouple.data.encode import encode as write_cache
    from unidecouple.data.formats import open_readers
    from unidecouple.data.pictures import ImagePreprocessor
    from unidecouple.train.launch import device_of

    place = device_of(arguments.device)
    model, processor = load(arguments.model)
    readers = open_readers(arguments.path, arguments.data_type, arguments.root, arguments.cache, columns=arguments.columns)
    manifest = write_cache(
        readers,
        model.model.vqmodel.to(place),
        ImagePreprocessor(processor),
        arguments.output,
        EncodeOptions(batch_size=arguments.batch_size, max_bad_ratio=arguments.max_bad_ratio),
        progress_bar(f"encoding {arguments.path.name}", "records"),
    )
    size = f"{manifest.count:,} images of {manifest.tokens_per_image} tokens"
    print(f"{arguments.output}: {size}; {manifest.skipped:,} records left out")
    return OK


def add_commands(commands: Commands) -> None:
    """``unidecouple data check|preview|encode``."""
    group = add_group(commands, "data", "Check, look at and encode your own data.")
    parsers = {}
    for name, function in (("check", check), ("preview", preview), ("encode", encode)):
        parsers[name] = command = add(group, function, name)
        command.add_argument("path", type=Path, nargs="+" if name == "check" else None, help="file, folder, or pattern with *")
        command.add_argument(
            "--data-type", help="force a format: messages, llava, qa, flat, webdataset, parquet, datasets, image_tokens"
        )
        command.add_argument("--root", type=Path, help="where relative names of images start (default: the file's folder)")
        command.add_argument(
            "--columns",
            type=columns,
            metavar="NAME=COLUMN,...",
            help="your keys or columns for our names, as in question=q,answer=a,image=path",
        )
        command.add_argument("--cache", type=Path, help="folder that keeps indices (default: none is kept)")
    for name in ("check", "preview"):
        parsers[name].add_argument(
            "--model", default="understanding", help="checkpoint whose processor is used (default: understanding)"
        )
    for name in ("check", "encode"):
        parsers[name].add_argument(
            "--max-bad-ratio", type=share, default=0.01, help="share of bad records above which it fails (default: 0.01)"
        )
    parsers["check"].add_argument(
        "--max-length", type=whole(1), help="tokens above which a sample is a problem (default: the longest that the model takes)"
    )
    parsers["preview"].add_argument("--output", type=Path, required=True, help="HTML page to write")
    parsers["preview"].add_argument("--samples", type=whole(1), default=4, help="samples of each task (default: 4)")
    parsers["preview"].add_argument("--seed", type=whole(0), default=0, help="which samples (default: 0)")
    parsers["encode"].add_argument("--model", required=True, help="checkpoint whose image tokenizer encodes")
    parsers["encode"].add_argument("--output", type=Path, required=True, help="folder of the cache")
    parsers["encode"].add_argument("--batch-size", type=whole(1), default=32, help="images encoded together (default: 32)")
    parsers["encode"].add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1, … (default: auto, a GPU where there is one)"
    )
