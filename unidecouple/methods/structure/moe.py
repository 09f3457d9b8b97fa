"""The control: a plain mixture of the same size by sparse upcycling, without any knowledge of tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from unidecouple import bounds
from unidecouple.methods.structure.upcycling import copy_into_experts

if TYPE_CHECKING:
    from unidecouple.models.configuration import UniLlamaConfig


@dataclass(frozen=True)
class MoE:
    """One group of experts, top-k, and a shared expert: by default the parameters of ``TaskAwareMoE`` less its task router.

    Without this control a gain of UniDecouple may be a gain of size (the paper has none; see method notes).

    Attributes:
        num_experts: routed experts per layer.
        num_experts_per_tok: k, the experts per token.
        shared_expert: whether each layer also has a shared expert.
        alpha_init: initial weight alpha of the shared expert.
        moe_layers: layers with experts, counted from 0; the others stay dense. None: all layers.
    """

    kind: Literal["moe"] = "moe"
    num_experts: int = 4
    num_experts_per_tok: int = 1
    shared_expert: bool = True
    alpha_init: float = 0.5
    moe_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        bounds.finite(self, "alpha_init")

    def configure(self, text: UniLlamaConfig) -> dict[str, Any]:
        """Fields of the text configuration that this structure sets."""
        return {
            "ffn": "moe",
            "num_experts": self.num_experts,
            "num_experts_per_tok": self.num_experts_per_tok,
            "shared_expert": self.shared_expert,
            "alpha_init": self.alpha_init,
            "moe_layers": None if self.moe_layers is None else list(self.moe_layers),
        }

    def upcycle(self, state: Mapping[str, Tensor], text: UniLlamaConfig) -> dict[str, Tensor]:
        """Exact start from dense weights."""
        return copy_into_experts(state, self.num_experts, self.shared_expert, self.alpha_init, self.moe_layers)

    @classmethod
    def migrate_keys(cls, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """``values`` of a recipe of version 0.1, which counted half of the experts as ``experts_per_task``."""
        kept = {key: value for key, value in values.items() if key != "experts_per_task"}
        half = values.get("experts_per_task")
        if not isinstance(half, int):
            return dict(values), {}
        return kept | {"num_experts": 2 * half}, {"experts_per_task": f"num_experts: {2 * half}"}
