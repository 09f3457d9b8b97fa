"""Linear layers that no stage of a run trains, stored compressed while it trains (``models/compressed.py``)."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from unidecouple.files import atomic_directory
from unidecouple.methods.selection import part_of
from unidecouple.methods.stage import PARTS, Stage
from unidecouple.models.base import UnifiedModel
from unidecouple.models.compressed import StoredForm, Storage, compress, set_weight
from unidecouple.models.lora import LoraLinear

FULL_WEIGHTS = "frozen"
"""Folder in a run's while it trains: the compressed weights as they were, which checkpoints contain."""
COMPRESSED_PARTS = ("vision", "attention", "ffn", "shared_expert")


def frozen_matrices(model: nn.Module, stages: Sequence[Stage]) -> dict[str, tuple[int, int]]:
    """Names and shapes (out, in) of the linear layers' weights that no stage trains, of ``COMPRESSED_PARTS``.

    The heads, word embeddings and stacked weights (experts, sets per group) are left as they are.
    """
    patterns = [pattern for stage in stages for entry in stage.train for pattern in PARTS.get(entry, (entry,))]
    owners = {f"{name}.weight": module for name, module in model.named_modules() if type(module) in (nn.Linear, LoraLinear)}
    return {
        name: (module.out_features, module.in_features)
        for name, module in owners.items()
        if part_of(name) in COMPRESSED_PARTS and not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }


def compress_frozen(model: UnifiedModel, storage: Storage, stages: Sequence[Stage], folder: Path, first: bool) -> None:
    """Compress the ``frozen_matrices`` of ``model``; the ``first`` process keeps them as they were in ``folder``.

    Raises:
        ValueError: there is none, or bitsandbytes is missing.
    """
    names = frozen_matrices(model, stages)
    if not names:
        raise ValueError(
            f"quantize_frozen={storage}: some stage trains every linear layer of {', '.join(COMPRESSED_PARTS)}, so none stays "
            "frozen. Leave it out, or train low-rank updates (lora) in their place"
        )
    weights: Mapping[str, nn.Parameter] = dict(model.named_parameters())
    file = folder / FULL_WEIGHTS / "model.safetensors" if first else None
    if file is not None:
        with atomic_directory(file.parent, internal=True) as staging:
            save_file({name: weights[name].detach().contiguous() for name in names}, staging / file.name)
    for name, shape in names.items():
        set_weight(model, name, compress(weights[name].detach(), StoredForm(storage, shape, file, name)))
