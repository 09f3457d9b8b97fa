"""Names of weights: which of them a stage trains, and which part of the model each belongs to."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Iterable, Mapping

from unidecouple.methods.stage import PARTS

ALWAYS_FROZEN = ("model.vqmodel.*",)


def select(names: Iterable[str], train: Mapping[str, float], setting: str = "train") -> dict[str, float]:
    """Return the learning-rate factor of every parameter that trains.

    Args:
        names: all parameter names.
        train: names of ``PARTS`` or fnmatch patterns, each with its factor; later entries win.
        setting: what the error calls ``train``.

    Raises:
        ValueError: an entry matches nothing (a misspelt freeze must not pass in silence).
    """
    every = [name for name in names if not any(fnmatch.fnmatchcase(name, frozen) for frozen in ALWAYS_FROZEN)]
    chosen: dict[str, float] = {}
    for entry, factor in train.items():
        hits = [name for name in every if any(fnmatch.fnmatchcase(name, pattern) for pattern in PARTS.get(entry, (entry,)))]
        if not hits:
            raise ValueError(
                f"{setting}: {entry!r} matches no weight of this model; parts are {', '.join(PARTS)}, or give a pattern of names"
            )
        chosen |= dict.fromkeys(hits, factor)
    return chosen


@functools.cache
def part_of(name: str) -> str:
    """Return the first of ``PARTS`` that parameter ``name`` belongs to; "image_tokenizer" for the frozen VQ model, else "other"."""
    if any(fnmatch.fnmatchcase(name, frozen) for frozen in ALWAYS_FROZEN):
        return "image_tokenizer"
    found = (part for part, patterns in PARTS.items() if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))
    return next(found, "other")
