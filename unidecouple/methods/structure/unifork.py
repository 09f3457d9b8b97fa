"""UniFork (arXiv 2506.17202): shared layers first, then one branch of layers per task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from unidecouple import bounds
from unidecouple.methods.structure.untying import copy_into_sets, depth_of, untied

if TYPE_CHECKING:
    from unidecouple.models.configuration import UniLlamaConfig


@dataclass(frozen=True)
class UniFork:
    """The layers from ``fork`` on, and the final norm, have one set per task; the layers before serve both.

    A token goes by its own task, so a row may hold both (ours; in the paper a sequence has one task and meets one branch). The
    first token counts as understanding (see ``Task``), so an image's tokens attend to one key and value of the other branch.

    Attributes:
        fork: first layer of the branches, counted from 0, or (as 0.5, the paper's) the share of the depth before it.
    """

    kind: Literal["unifork"] = "unifork"
    fork: float | int = 0.5

    def __post_init__(self) -> None:
        bounds.at_least(0, self, "fork")

    def configure(self, text: UniLlamaConfig) -> dict[str, Any]:
        """Fields of the text configuration that this structure sets."""
        return untied(self._branches(text.num_hidden_layers), "task", norm=True)

    def upcycle(self, state: Mapping[str, Tensor], text: UniLlamaConfig) -> dict[str, Tensor]:
        """Exact start from dense weights: both branches are copies."""
        return copy_into_sets(state, self._branches(text.num_hidden_layers), norm=True)

    def _branches(self, layers: int) -> range:
        fork = depth_of(self.fork, layers)
        if not 0 < fork < layers:
            raise ValueError(f"fork={self.fork} is layer {fork} of {layers}: leave at least one layer before and one after it")
        return range(fork, layers)
