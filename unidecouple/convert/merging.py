"""Tuned checkpoints of one base merged into one, shard by shard; nothing but tensors by name is known of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from unidecouple.convert.layouts import DEEPSEEK, read_config
from unidecouple.convert.licences import carry_licences
from unidecouple.convert.parts import split_into_parts
from unidecouple.convert.processors import read_processor, write_processor
from unidecouple.convert.steps import GIGABYTE
from unidecouple.convert.weights import Weights, save_shards
from unidecouple.files import atomic_directory
from unidecouple.methods.merging.rule import Rule, merged
from unidecouple.models.families import UnifiedConfig
from unidecouple.ownership import check_directory

MAX_SHARD_BYTES = 5 * GIGABYTE
_ABOUT_FILES = ("dtype", "torch_dtype", "transformers_version", "_name_or_path", "architectures")


def write_merged(
    base: Path,
    tuned: Sequence[Path],
    target: Path,
    rule: Rule,
    say: Callable[[str], None],
    finish: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write ``merged`` weights to ``target``, with the base's configuration, processor and licences.

    One part of every checkpoint is in memory at a time. ``finish`` may add files to the folder before it becomes ``target``.

    Raises:
        ValueError: see ``check_alike``, or ``target`` holds something else than a checkpoint. Nothing was written.
    """
    check_directory(target, (base, *tuned))
    check_alike(base, tuned)
    described = read_config(base)
    start, models = Weights(base), [Weights(folder) for folder in tuned]
    processor = read_processor(described)
    parts = split_into_parts(start.shapes)
    shapes = {name: start.shapes[name] for names in parts for name in names}
    made = (merged(start.read(names), [model.read(names) for model in models], rule) for names in parts)
    with atomic_directory(target, (base, *tuned)) as staging:
        files = save_shards(staging, shapes, made, MAX_SHARD_BYTES)
        for name in ("config.json", "generation_config.json"):
            if (base / name).is_file():
                shutil.copyfile(base / name, staging / name)
        if processor is not None:
            write_processor(staging, processor, described.layout)
        carried = carry_licences(base, staging, readme=True)
        finish(staging)
    say(f"{target}: {len(shapes)} tensors of {len(tuned)} models merged, in {len(files)} file(s)")
    say(f"carried along: {', '.join(carried) or 'no licence or readme was there'}")


def check_alike(base: Path, tuned: Sequence[Path]) -> None:
    """Compare layouts, configurations, names and shapes.

    Raises:
        ValueError: something differs, so that the models cannot have started from ``base``.
    """
    if read_config(base).layout == DEEPSEEK:
        raise ValueError(f"{base} is in deepseek-ai's original layout: convert it first with `unidecouple convert`")
    ours, described = Weights(base).shapes, _described(base)
    for folder in tuned:
        theirs = Weights(folder).shapes
        remedy = f"merge models that were fine-tuned from {base} itself, with one structure"
        if any("lora_" in name for name in theirs):
            remedy = f"merge its low-rank updates first: unidecouple convert {folder} --merge-lora --output FOLDER"
        for name in sorted(ours.keys() ^ theirs.keys()):
            who, other = (base, folder) if name in ours else (folder, base)
            raise ValueError(f"{who} has the weight {name}, {other} does not: {remedy}")
        for name, weight in ours.items():
            if theirs[name].shape != weight.shape:
                raise ValueError(
                    f"{name} is of shape {tuple(theirs[name].shape)} in {folder} and {tuple(weight.shape)} in {base}: {remedy}"
                )
        for key, value in _described(folder).items():
            if described.get(key) != value:
                raise ValueError(f"config.json of {folder} has {key}={value!r}, of {base} {described.get(key)!r}: {remedy}")


def flat_config(config: UnifiedConfig) -> dict[str, Any]:
    """Fields of ``config`` that describe the model, by dotted name; those about files are left out."""

    def flat(raw: dict[Any, Any], prefix: str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in raw.items():
            if key not in _ABOUT_FILES:
                out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        return out

    return flat(config.to_dict(), "")


def _described(folder: Path) -> dict[str, Any]:
    described = read_config(folder)
    return flat_config(described.build(read_processor(described)))
