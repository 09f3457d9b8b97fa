"""The configuration of a decoupled model before there are weights, for a plan of runs that start from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch

from unidecouple.batch import Task
from unidecouple.compare.merge import Decoupling
from unidecouple.convert.structure import with_text
from unidecouple.delta.forms import ChangedMatrix, Fidelity, choose_forms
from unidecouple.models.families import UnifiedConfig, model_class

FLOAT_BYTES: Final = 4
"""Bytes of a weight in training."""


def matrices_of(shapes: Mapping[str, Sequence[int]]) -> dict[str, ChangedMatrix]:
    """The matrices among ``shapes``, as changed throughout."""
    return {name: ChangedMatrix((shape[0], shape[1]), FLOAT_BYTES) for name, shape in shapes.items() if len(shape) == 2}


def decoupled_config(config: UnifiedConfig, method: Decoupling, models: int) -> UnifiedConfig:
    """``config`` with the deltas of every matrix and norm of the decoder, for generation or (of two ``models``) for both tasks.

    Where ranks depend on the weights, matrices are counted whole, which is the most. Rows of the word embeddings are left out.
    """
    with torch.device("meta"):
        decoder = model_class(config)(config).model.language_model
    shapes = {name.removesuffix(".weight"): tuple(weight.shape) for name, weight in decoder.named_parameters()}
    shapes = {name: shape for name, shape in shapes.items() if name.startswith(("layers.", "norm"))}
    chosen = choose_forms(matrices_of(shapes), Fidelity(full=True) if method.needs_spectra else method)
    forms = {name: chosen.get(name, "full") for name in shapes}
    return with_text(config, task_deltas={task.key: forms for task in (Task.T2I, Task.MMU)[:models]})
