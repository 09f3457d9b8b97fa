"""The base families: configuration, model and processor of each, by the ``model_type`` of its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unidecouple.models.base import UnifiedModel
from unidecouple.models.configuration import UniJanusConfig
from unidecouple.models.emu3 import UniEmu3Config, UniEmu3ForConditionalGeneration
from unidecouple.models.janus import UniJanusForConditionalGeneration

UnifiedConfig = UniJanusConfig | UniEmu3Config

FAMILIES: tuple[tuple[type[UnifiedConfig], type[UnifiedModel]], ...] = (
    (UniJanusConfig, UniJanusForConditionalGeneration),
    (UniEmu3Config, UniEmu3ForConditionalGeneration),
)


def configuration(raw: Mapping[str, Any]) -> UnifiedConfig:
    """Return the configuration that a config.json of ours describes.

    Raises:
        ValueError: it is of no family.
    """
    for kind, _ in FAMILIES:
        if kind.model_type == raw.get("model_type"):
            return kind(**raw)
    raise ValueError(f"model_type={raw.get('model_type')!r} is not one of {', '.join(kind.model_type for kind, _ in FAMILIES)}")


def model_class(config: UnifiedConfig) -> type[UnifiedModel]:
    """Return the model that ``config`` describes."""
    return next(model for kind, model in FAMILIES if isinstance(config, kind))
