"""MoDE (arXiv 2512.03125): low-rank experts of the FFN by modality, several for text and one for images."""

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
class MoDE:
    """Text tokens: ``y = W x + (lora_alpha / r) sum_i softmax(R x)_i B_i A_i x``; image tokens: ``W x`` and one pair; W frozen.

    The paper pairs this with a divergence of the model from itself without experts, which is the objective ``self_distillation``.
    Ours: image tokens to be understood share the image expert with those to be generated (the paper's base has one kind), and the
    weights that only generation uses may train as well, as the stage's ``train`` has them.

    Attributes:
        r: rank; 8 in the paper.
        lora_alpha: scale is lora_alpha / r; 16 in the paper.
        text_experts: n, pairs that text tokens weigh; 4 in the paper.
        targets: of attention and mlp; mlp in the paper.
    """

    kind: Literal["mode"] = "mode"
    r: int = 8
    lora_alpha: float = 16.0
    text_experts: int = 4
    targets: tuple[Literal["attention", "mlp"], ...] = ("mlp",)

    def __post_init__(self) -> None:
        bounds.at_least(1, self, "r", "text_experts")
        bounds.above(0, self, "lora_alpha")

    def configure(self, text: UniLlamaConfig) -> dict[str, Any]:
        """Fields of the text configuration that this structure sets."""
        kind = {"lora_kind": "modality", "lora_experts": self.text_experts, "lora_per_task": [], "group_by": "modality"}
        return {"lora_rank": self.r, "lora_alpha": self.lora_alpha, "lora_targets": list(self.targets), **kind}

    def upcycle(self, state: Mapping[str, Tensor], text: UniLlamaConfig) -> dict[str, Tensor]:
        """Exact start from dense weights, which stay; updates are new weights and start at zero."""
        return keep_dense(state)
