"""Checkpoints written by ``unidecouple decouple``: weights shard by shard, and a card that says how they were made."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from unidecouple import __version__
from unidecouple.convert.layouts import UNIDECOUPLE, config_json
from unidecouple.convert.licences import carry_licences
from unidecouple.convert.parts import Part
from unidecouple.convert.processors import write_generation_config, write_processor
from unidecouple.convert.steps import GIGABYTE
from unidecouple.convert.weights import save_shards
from unidecouple.delta.checkpoint import Checkpoint
from unidecouple.delta.decoupled import Plan, describe, parts
from unidecouple.delta.pair import ChooseWeight, Pair
from unidecouple.eval.card import weights_of
from unidecouple.files import atomic_directory, sha256_file, write_json_atomic, write_text_atomic
from unidecouple.models.families import UnifiedConfig
from unidecouple.ownership import check_directory
from unidecouple.source import PrintLine
from unidecouple.train.meter import SPENT, Meter

PROVENANCE, CARD = "decouple.json", "README.md"
SHARD_BYTES = 5 * GIGABYTE


@dataclass(frozen=True)
class Provenance:
    """How a checkpoint was made.

    Attributes:
        command: as it was typed.
        settings: mode and what belongs to it.
        lines: what to know about the result, in words.
        meter: of the time and memory that it took, which ``spent.json`` records.
    """

    command: str
    settings: dict[str, Any]
    lines: Sequence[str] = field(default_factory=tuple)
    meter: Meter = field(default_factory=Meter)


def write_decoupled(
    plan: Plan,
    target: Path,
    made: Provenance,
    say: PrintLine,
    max_shard_bytes: int = SHARD_BYTES,
    trained: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Write the checkpoint of ``plan`` to ``target``; one layer of every source and one shard are in memory.

    Weights ``trained`` replace the plan's.

    Raises:
        ValueError: ``target`` must not be replaced. Nothing was written.
    """
    lines = (*describe(plan), *made.lines)
    settings = {**made.settings, "task_deltas": plan.forms, "extra_bytes": plan.extra_bytes}
    full = replace(made, settings=settings, lines=lines)
    _write(plan.sources.checkpoints, (plan.config, plan.shapes, parts(plan, trained)), target, full, say, max_shard_bytes)


def write_plain(
    pair: Pair, choose: ChooseWeight, target: Path, made: Provenance, say: PrintLine, max_shard_bytes: int = SHARD_BYTES
) -> None:
    """Write a checkpoint with one set of weights, each chosen by ``choose``; raises as ``write_decoupled``."""

    def chosen() -> Iterator[Part]:
        for names in pair.base:
            before, after = pair.base.read(names), pair.tuned.read(names)
            yield {name: choose(name, before[name], after[name]) for name in names}

    shapes = {name: pair.tuned.shapes[name] for names in pair.base for name in names}
    _write([pair.base, pair.tuned], (pair.base.config, shapes, chosen()), target, made, say, max_shard_bytes)


def _write(
    sources: Sequence[Checkpoint],
    content: tuple[UnifiedConfig | None, Part, Iterator[Part]],
    target: Path,
    made: Provenance,
    say: PrintLine,
    max_shard_bytes: int,
) -> None:
    config, shapes, made_of = content
    base, folders = sources[0], [source.folder for source in sources]
    check_directory(target, folders)
    with atomic_directory(target, folders) as staging:
        files = save_shards(staging, shapes, made_of, max_shard_bytes)
        if config is None:
            _copy_about(base.folder, staging)
        else:
            write_json_atomic(staging / "config.json", config_json(config, UNIDECOUPLE))
        if base.processor is not None:
            write_processor(staging, base.processor, UNIDECOUPLE)
            write_generation_config(base.folder, staging, base.processor)
        carry_licences(base.folder, staging)
        about = provenance_json(sources, made)
        write_json_atomic(staging / PROVENANCE, about)
        write_text_atomic(staging / CARD, _card(target.name, about, made.lines))
        write_json_atomic(staging / SPENT, vars(made.meter.read()))
    for line in made.lines:
        say(line)
    say(f"{target}: {len(shapes)} tensors in {len(files)} file(s)")


def provenance_json(sources: Sequence[Checkpoint], made: Provenance) -> dict[str, Any]:
    """What ``decouple.json`` holds: the command, its settings, and the hash of every file of every source."""
    return {
        "generator": "unidecouple",
        "version": __version__,
        "command": made.command,
        "settings": made.settings,
        "sources": [{"name": source.name, "role": _role(n), "sha256": file_hashes(source)} for n, source in enumerate(sources)],
    }


def _role(number: int) -> str:
    return "base" if number == 0 else "tuned"


def file_hashes(source: Checkpoint) -> dict[str, str]:
    """File name -> SHA-256 of a checkpoint: weights, configuration, tokenizer."""
    return {source.start.name: sha256_file(source.start)} if Path(source.name).is_file() else weights_of(source.folder)


def _copy_about(folder: Path, staging: Path) -> None:
    """Everything but weights of another family's checkpoint."""
    for path in sorted(folder.iterdir()):
        weights = path.suffix in (".safetensors", ".bin", ".pt", ".pth") or path.name.endswith(".index.json")
        if path.is_file() and not weights and path.name != CARD and not path.name.startswith("."):
            shutil.copyfile(path, staging / path.name)


def _card(name: str, about: dict[str, Any], lines: Sequence[str]) -> str:
    """The model card."""
    base, *tuned = about["sources"]
    text = ["---", "library_name: unidecouple", f"base_model: {base['name']}", "tags: [unidecouple, decoupled]", "---", ""]
    others = ", ".join(f"`{one['name']}`" for one in tuned)
    text += [f"# {name}", "", f"Made from `{base['name']}` and {others} by", ""]
    text += [f"    {about['command']}", "", *(f"- {line}" for line in lines), "", "| source | file | SHA-256 |", "|---|---|---|"]
    for source in about["sources"]:
        text += [f"| {source['role']} | {file} | `{digest}` |" for file, digest in source["sha256"].items()]
    return "\n".join([*text, "", f"Settings and hashes are in `{PROVENANCE}`. Made with unidecouple {about['version']}.", ""])
