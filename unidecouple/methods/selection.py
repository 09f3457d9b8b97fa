"""Names of weights: which of them a stage trains, and which part of the model each belongs to."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from unidecouple.methods.stage import PARTS, Stage
from unidecouple.models.lora import LoraLinear

ALWAYS_FROZEN = ("model.vqmodel.*",)
COMPRESSED_PARTS = ("vision", "attention", "ffn", "shared_expert")
"""Parts whose frozen matrices ``quantize_frozen`` compresses."""


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


def frozen_matrices(model: nn.Module, stages: Sequence[Stage]) -> dict[str, tuple[int, int]]:
    """Names and shapes (out, in) of the linear layers' weights that no stage trains, of ``COMPRESSED_PARTS``.

    The heads, word embeddings and stacked weights (experts, sets per group) are left out.
    """
    patterns = [pattern for stage in stages for entry in stage.train for pattern in PARTS.get(entry, (entry,))]
    owners = {f"{name}.weight": module for name, module in model.named_modules() if type(module) in (nn.Linear, LoraLinear)}
    return {
        name: (module.out_features, module.in_features)
        for name, module in owners.items()
        if part_of(name) in COMPRESSED_PARTS and not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }


@functools.cache
def part_of(name: str) -> str:
    """Return the first of ``PARTS`` that parameter ``name`` belongs to; "image_tokenizer" for the frozen VQ model, else "other"."""
    if any(fnmatch.fnmatchcase(name, frozen) for frozen in ALWAYS_FROZEN):
        return "image_tokenizer"
    found = (part for part, patterns in PARTS.items() if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))
    return next(found, "other")
