"""I-LoRA of Crab+ (arXiv 2603.04128): several updates on one low-rank basis, weighed per token by a router of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from unidecouple import bounds
from unidecouple.methods.structure.upcycling import keep_dense

if TYPE_CHECKING:
    from unidecouple.models.configuration import UniLlamaConfig


@dataclass(frozen=True)
class ILora:
    """``y = W x + (lora_alpha / r) sum_i softmax(R x)_i B_i A x``, W frozen, every B from zero; no token needs a label.

    Nothing separates the tasks but what the router learns. Deviations: no dropout (the paper's 0.1), and the weights that only
    generation uses may train as well, as the stage's ``train`` has them.

    Attributes:
        r: rank; 128 in the paper.
        lora_alpha: scale is lora_alpha / r; 256 in the paper.
        heads: n, how many B share one A; 3 in the paper.
        targets: of attention (q, k, v, o) and mlp (gate, up, down); both in the paper.
    """

    kind: Literal["i_lora"] = "i_lora"
    r: int = 128
    lora_alpha: float = 256.0
    heads: int = 3
    targets: tuple[Literal["attention", "mlp"], ...] = ("attention", "mlp")

    def __post_init__(self) -> None:
        bounds.at_least(1, self, "r", "heads")
        bounds.above(0, self, "lora_alpha")

    def configure(self, text: UniLlamaConfig) -> dict[str, Any]:
        """Fields of the text configuration that this structure sets."""
        kind = {"lora_kind": "interaction", "lora_experts": self.heads, "lora_per_task": []}
        return {"lora_rank": self.r, "lora_alpha": self.lora_alpha, "lora_targets": list(self.targets), **kind}

    def upcycle(self, state: Mapping[str, Tensor], text: UniLlamaConfig) -> dict[str, Tensor]:
        """Exact start from dense weights, which stay; updates are new weights and start at zero."""
        return keep_dense(state)
