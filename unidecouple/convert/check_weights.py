"""Whether a checkpoint's weights are those of the model that its config.json describes, by names and shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from unidecouple.models.families import UnifiedConfig, model_class


def check_weights(found: Mapping[str, Tensor], config: UnifiedConfig, start: Path, called: Callable[[str], str] = str) -> None:
    """Compare names and shapes with those of the model that ``config`` describes; nothing of its size is allocated.

    Args:
        found: weights under our names; shapes are enough.
        config: of the model.
        start: file that the weights begin with.
        called: how that file calls a weight of ours.

    Raises:
        ValueError: a weight is missing, too many or of another shape, or ``config`` describes no model.
    """
    _check_depth(len(found), config, start)
    try:
        with torch.device("meta"):
            expected = model_class(config)(config).state_dict()
    except Exception as error:  # torch and transformers refuse sizes with errors of many types
        raise ValueError(f"{start.parent / 'config.json'} does not describe a model: {error}") from error
    for name in expected.keys() - found.keys():
        raise ValueError(f"{start} lacks {called(name)}, which must be of shape {tuple(expected[name].shape)}")
    for name in found.keys() - expected.keys():
        raise ValueError(f"{start} has {called(name)}, which a model of its config.json does not have")
    for name, weight in expected.items():
        if found[name].shape != weight.shape:
            raise ValueError(
                f"{called(name)} in {start} is of shape {tuple(found[name].shape)}, but by config.json it must be "
                f"{tuple(weight.shape)}"
            )


def _check_depth(weights: int, config: UnifiedConfig, start: Path) -> None:
    """Refuse more layers than there are weights: to build them, even without data, would take minutes or all memory."""
    for part in filter(None, (config.text_config, getattr(config, "vision_config", None), config.vq_config)):
        for field in ("num_hidden_layers", "depth", "num_res_blocks"):
            if (getattr(part, field, 0) or 0) > weights:
                raise ValueError(
                    f"{start.parent / 'config.json'}: {part.model_type} has {field}={getattr(part, field)}, but {start} holds "
                    f"{weights} weights in all"
                )
