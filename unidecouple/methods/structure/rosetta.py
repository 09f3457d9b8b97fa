"""Rosetta's structure: separate experts for text, images to be understood and images to be generated (arXiv 2607.00293, 3.2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from unidecouple.methods.structure.upcycling import copy_into_experts

if TYPE_CHECKING:
    from unidecouple.models.configuration import UniLlamaConfig


@dataclass(frozen=True)
class Rosetta:
    """What a token is decides its group, a router of that group chooses k of its experts, and a shared expert sees every token.

    ``h = E_shared(x) + sum_{i in TopK} g_i E_{t,i}(x)`` (eq. 2), from a dense model: every expert is a copy of its FFN with
    ``W_down`` halved (appendix A.3), so the sum is the dense output. The paper adds the groups one after the other, each a copy
    of the text experts as trained so far; ours all start at once from the dense FFN. Its shared expert has no weight alpha; ours
    has one, which starts at 1 and stays there if no stage trains it.

    Attributes:
        text_experts, image_in_experts, image_out_experts: experts per kind of token; 3, 3 and 6 in the paper.
        num_experts_per_tok: k, the experts per token; 2 in the paper.
        shared_expert: the paper's ablation switches it off; the others' ``W_down`` is then whole.
        moe_layers: layers with experts, counted from 0; the others stay dense. None: all layers, as in the paper.
    """

    RENAMED_KEYS: ClassVar[dict[str, str]] = {"seen_experts": "image_in_experts", "drawn_experts": "image_out_experts"}

    kind: Literal["rosetta"] = "rosetta"
    text_experts: int = 3
    image_in_experts: int = 3
    image_out_experts: int = 6
    num_experts_per_tok: int = 2
    shared_expert: bool = True
    moe_layers: tuple[int, ...] | None = None

    @property
    def _sizes(self) -> tuple[int, int, int]:
        return self.text_experts, self.image_in_experts, self.image_out_experts

    def configure(self, text: UniLlamaConfig) -> dict[str, Any]:
        """Fields of the text configuration that this structure sets."""
        return {
            "ffn": "typed_moe",
            "group_by": "type",
            "group_sizes": list(self._sizes),
            "num_experts": sum(self._sizes),
            "num_experts_per_tok": self.num_experts_per_tok,
            "shared_expert": self.shared_expert,
            "alpha_init": 1.0,
            "moe_layers": None if self.moe_layers is None else list(self.moe_layers),
        }

    def upcycle(self, state: Mapping[str, Tensor], text: UniLlamaConfig) -> dict[str, Tensor]:
        """Exact start from dense weights."""
        return copy_into_experts(state, sum(self._sizes), self.shared_expert, 1.0, self.moe_layers, shared_down=0.5)
