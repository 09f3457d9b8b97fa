"""The dense baseline: every weight serves both tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

if TYPE_CHECKING:
    from unidecouple.models.configuration import UniLlamaConfig


@dataclass(frozen=True)
class Dense:
    """No change."""

    kind: Literal["dense"] = "dense"

    def configure(self, text: UniLlamaConfig) -> dict[str, Any]:
        """Fields of the text configuration that this structure sets."""
        return {"ffn": "dense", "moe_layers": None}

    def upcycle(self, state: Mapping[str, Tensor], text: UniLlamaConfig) -> dict[str, Tensor]:
        """The weights as they are."""
        return dict(state)
