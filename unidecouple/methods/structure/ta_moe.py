"""UniDecouple's structure: a Task-Aware Mixture of Experts in place of every FFN (arXiv 2506.03591, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from unidecouple import bounds
from unidecouple.batch import Task
from unidecouple.methods.structure.upcycling import copy_into_experts

if TYPE_CHECKING:
    from unidecouple.models.configuration import UniLlamaConfig


@dataclass(frozen=True)
class TaskAwareMoE:
    """Task-aware router -> the task's group of experts -> top-k of them, plus alpha * a shared expert (eq. 1).

    Attributes:
        experts_per_group: e, the experts per task. In the paper two task experts per shared expert are best; 2 is our reading.
        num_experts_per_tok: k, the experts per token; 1 in the paper.
        shared_expert: whether each layer also has a shared expert; false is the paper's ablation.
        shared_expert_per_task: one shared expert and one alpha per task instead of one for both, which is the paper's. Ours, after
            arXiv 2603.03276, which finds shared experts per modality better than a global one.
        alpha_init: initial weight alpha of the shared expert; unpublished.
        moe_layers: layers with experts, counted from 0; the others stay dense. None: all layers, as in the paper.
        task_routing: "learned": the task router selects the group; "label": the true task does, also at inference (an ablation).
        context_router: add a router before the first layer that also sees the previous tokens; the routers of the layers add to
            its logits. Ours, beyond the paper; see ``ContextRouter``.
    """

    RENAMED_KEYS: ClassVar[dict[str, str]] = {"experts_per_task": "experts_per_group"}

    kind: Literal["ta_moe"] = "ta_moe"
    experts_per_group: int = 2
    num_experts_per_tok: int = 1
    shared_expert: bool = True
    shared_expert_per_task: bool = False
    alpha_init: float = 0.5
    moe_layers: tuple[int, ...] | None = None
    task_routing: Literal["learned", "label"] = "learned"
    context_router: bool = False

    def __post_init__(self) -> None:
        bounds.finite(self, "alpha_init")
        if self.shared_expert_per_task and not self.shared_expert:
            raise ValueError("shared_expert_per_task=True with shared_expert=False: leave one of them out")

    def configure(self, text: UniLlamaConfig) -> dict[str, Any]:
        """Fields of the text configuration that this structure sets."""
        return {
            "ffn": "ta_moe",
            "num_experts": len(Task) * self.experts_per_group,
            "num_experts_per_tok": self.num_experts_per_tok,
            "shared_expert": self.shared_expert,
            "shared_expert_per_task": self.shared_expert_per_task,
            "alpha_init": self.alpha_init,
            "moe_layers": None if self.moe_layers is None else list(self.moe_layers),
            "task_routing": self.task_routing,
            "context_router": self.context_router,
        }

    def upcycle(self, state: Mapping[str, Tensor], text: UniLlamaConfig) -> dict[str, Tensor]:
        """Exact start from dense weights."""
        shared = len(Task) if self.shared_expert_per_task else self.shared_expert
        return copy_into_experts(state, len(Task) * self.experts_per_group, shared, self.alpha_init, self.moe_layers)
