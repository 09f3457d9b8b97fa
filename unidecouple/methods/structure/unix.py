"""Uni-X (arXiv 2509.24365): the ends of the decoder part by modality, the middle is shared."""

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
class UniX:
    """The ``first`` and the ``last`` layers have one set for text and one for image tokens, the layers between one for both.

    In the layers that are parted a token attends to its own modality alone, so the modalities meet in the middle. This one
    structure therefore does not start as the dense model does, unless ``across``. The final norm is shared, as in the authors'
    code. The paper's model sees images as the same discrete tokens that it draws; in a Janus both kinds go together (ours).

    Attributes:
        first, last: how many layers at each end, or their share of the depth; the paper's 3B model has 12 and 6, a third and a
            sixth if its depth is 36 (our reading).
        across: attend to all tokens in every layer. Ours: an exact start, and what the split of the weights does by itself.
    """

    kind: Literal["unix"] = "unix"
    first: float | int = 1 / 3
    last: float | int = 1 / 6
    across: bool = False

    def __post_init__(self) -> None:
        bounds.at_least(0, self, "first", "last")

    def configure(self, text: UniLlamaConfig) -> dict[str, Any]:
        """Fields of the text configuration that this structure sets."""
        attention = "all" if self.across else "group"
        return untied(self._ends(text.num_hidden_layers), "modality", norm=False, attention=attention)

    def upcycle(self, state: Mapping[str, Tensor], text: UniLlamaConfig) -> dict[str, Tensor]:
        """Both sets are copies of the dense weights."""
        return copy_into_sets(state, self._ends(text.num_hidden_layers), norm=False)

    def _ends(self, layers: int) -> list[int]:
        first, last = depth_of(self.first, layers), depth_of(self.last, layers)
        if min(first, last) < 0 or not 0 < first + last < layers:
            raise ValueError(
                f"first={self.first}, last={self.last} are {first} and {last} of {layers} layers: part at least one, and leave at "
                "least one shared between them"
            )
        return [*range(first), *range(layers - last, layers)]
