"""Linear layers that no stage of a run trains, stored compressed while it trains (``models/compressed.py``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import nn

from unidecouple.files import atomic_directory
from unidecouple.methods.selection import COMPRESSED_PARTS, frozen_matrices
from unidecouple.methods.stage import Stage
from unidecouple.models.compressed import Storage, StoredForm, compress, set_weight

if TYPE_CHECKING:
    from unidecouple.models.base import UnifiedModel

FULL_WEIGHTS = "frozen"
"""Folder in a run's while it trains: the compressed weights as they were, which checkpoints contain."""


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
