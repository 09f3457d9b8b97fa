"""The command line's options as what they mean."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields

from unidecouple.batch import Task
from unidecouple.methods.structure import STRUCTURES, Structure

_MIXTURE = (
    "experts_per_group",
    "num_experts",
    "num_experts_per_tok",
    "shared_expert",
    "shared_expert_per_task",
    "alpha_init",
    "moe_layers",
    "context_router",
)
_UNTIED = ("group_by", "parts", "fork", "first", "last", "across")
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def structure(arguments: argparse.Namespace) -> Structure | None:
    """The structure that ``arguments`` of ``unidecouple convert`` ask for; None leaves it as it is.

    Raises:
        ValueError: an option that the structure has no use for.
    """
    given = {name: getattr(arguments, name) for name in (*_MIXTURE, *_UNTIED) if getattr(arguments, name) is not None}
    kind = next((kind for kind in STRUCTURES if kind.kind == arguments.structure), None)
    known = {field.name for field in fields(kind)} if kind else set()
    for name in given.keys() - known:
        option = "--no-shared-expert" if name == "shared_expert" else f"--{name.replace('_', '-')}"
        raise ValueError(f"{option} has no effect with --structure {arguments.structure}: remove it, or choose another structure")
    if "moe_layers" in given:
        given["moe_layers"] = numbers(given["moe_layers"])
    if "parts" in given:
        given["parts"] = tuple(given["parts"].split(","))
    given |= {name: depth(given[name]) for name in ("fork", "first", "last") if name in given}
    return kind(**given) if kind else None


def task(key: str | None) -> Task | None:
    """The task called ``key``, "mmu" or "t2i"."""
    return None if key is None else Task[key.upper()]


def depth(text: str) -> float | int:
    """A number of layers, "12", or a share of the depth, "0.5".

    Raises:
        ValueError: ``text`` is neither.
    """
    if not re.fullmatch(r"\d+|0?\.\d+", text):
        raise ValueError(f"{text!r} is not a depth: write a number of layers such as 12, or a fraction of the depth such as 0.5")
    return int(text) if text.isdigit() else float(text)


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers and ranges: "0,4-7" is 0, 4, 5, 6, 7.

    Raises:
        ValueError: ``text`` is something else.
    """
    found: list[int] = []
    for piece in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", piece)
        if match is None:
            raise ValueError(f"{text!r} is not a list of layers: write numbers and ranges, such as 0,4-7")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(found)


def shard_bytes(text: str) -> int:
    """A size in bytes: "5GB", "200MB", "1000".

    Raises:
        ValueError: ``text`` is no positive size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?B)?\s*", text.upper())
    size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if size < 1:
        raise ValueError(f"{text!r} is not a file size: write a number and a unit, such as 5GB or 200MB")
    return size
