"""TA-MoE: the feed-forward block of UniDecouple (arXiv 2506.03591), and the plain mixture that is its control.

Shapes: B batch, T tokens per row, N = B T, H hidden size, E experts over all groups, e experts of the
largest group, k experts per token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from unidecouple.models.experts import Experts
from unidecouple.models.lora import adaptable
from unidecouple.models.router import ExpertRouter, Routing, TaskAwareRouter, consecutive_ranges
from unidecouple.models.shield import SharedExpertGradScale, shielded

if TYPE_CHECKING:
    from unidecouple.models.configuration import UniLlamaConfig


class FeedForward(nn.Module):
    """Llama's SwiGLU FFN, ``W_down (silu(W_gate x) * W_up x)``, with optional LoRA; a dense block or the shared expert."""

    def __init__(self, config: UniLlamaConfig, lora_target: str) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = adaptable(config, lora_target, hidden, inner, bias)
        self.up_proj = adaptable(config, lora_target, hidden, inner, bias)
        self.down_proj = adaptable(config, lora_target, inner, hidden, bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor, group: Tensor | None = None) -> Tensor:
        """Map (..., H) to (..., H); ``group`` (...) int64 selects the LoRA pair if there is one per task."""
        return self.down_proj(self.act_fn(self.gate_proj(x, group)) * self.up_proj(x, group), group)


def _stacked(config: UniLlamaConfig, count: int, lora_target: str) -> Experts:
    """``count`` experts of the configuration's sizes."""
    rank = config.lora_rank if config.num_lora_pairs(lora_target) else 0
    sizes = (config.hidden_size, config.intermediate_size)
    return Experts(count, *sizes, config.experts_backend, rank, config.lora_alpha / max(1, rank))


class MixtureOfExperts(nn.Module):
    """``y = sum_i w_i Expert_i(x) + alpha * SharedExpert(x)`` (eq. 1), experts chosen inside the token's task group.

    "ta_moe" has one group of experts per task, selected by a task-aware router; its shared expert, and alpha, may be one per
    group (stacked as ``Experts``). "moe" has one group for all tokens. "typed_moe" has one group per kind of token
    (``group_by``), selected by labels; its groups may differ in size.

    Attributes:
        router: the task router (``task_router`` in recipes), which selects a token's group; None without one. This name and
            the next are those of checkpoints.
        gate: the expert router (``expert_router`` in recipes), which selects experts within the group.
    """

    def __init__(self, config: UniLlamaConfig, routed: bool = True) -> None:
        """Build the mixture; if not ``routed``, a "ta_moe" has no task router and uses the context router's logits."""
        super().__init__()
        self.num_groups, self.group_sizes = config.num_groups, config.expert_groups
        self.group_by = config.group_by
        hidden, has_task_router = config.hidden_size, routed and config.ffn == "ta_moe"
        lora = (config.lora_rank if config.num_lora_pairs("router") else 0, config.lora_alpha / max(1, config.lora_rank))
        self.router = TaskAwareRouter(hidden, config.num_groups, *lora) if has_task_router else None
        self.gate = ExpertRouter(hidden, config.expert_groups, config.num_experts_per_tok, *lora)
        self.experts = _stacked(config, config.num_experts, "experts")
        self.shared_expert: FeedForward | Experts | None = None
        self.alpha: nn.Parameter | None = None
        if config.shared_expert:
            count = config.num_groups if config.shared_expert_per_task else 1
            self.shared_expert = _stacked(config, count, "shared_expert") if count > 1 else FeedForward(config, "shared_expert")
            self.alpha = nn.Parameter(torch.full((count,), config.alpha_init))  # FSDP2 refuses scalars

    def forward(
        self,
        x: Tensor,
        group_ids: Tensor | None,
        routing: str,
        task_logits: Tensor | None = None,
        shield: SharedExpertGradScale | None = None,
        routers_only: bool = False,
        last: bool = False,
    ) -> tuple[Tensor, Routing]:
        """Route the tokens and apply their experts.

        Args:
            x: (B, T, H).
            group_ids: (B, T) int64 group of each token (``token_groups``); needed when ``routing`` is "label" and by a "typed_moe".
            routing: "learned" or "label".
            task_logits: (B, T, groups) of the context router; those of the mixture's own router are added.
            shield: scales the gradient of some tokens into the shared expert.
            routers_only: the loss uses the task routers' logits only, so everything else is computed without gradients.
            last: with ``routers_only``: no later layer has a router, so ``x`` is returned and no expert runs.

        Returns:
            (B, T, H), and the routing of its N tokens.
        """
        x_NH = x.flatten(0, 1)
        task_logits = None if task_logits is None else task_logits.flatten(0, 1)
        if self.router is not None:
            task_logits = self.router(x_NH) if task_logits is None else task_logits + self.router(x_NH)
        group_N = self._group(x_NH, task_logits, group_ids, routing)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not routers_only):
            probs_Ne, weight_Nk, expert_Nk = self.gate(x_NH, group_N)
            decision = Routing(task_logits, group_N, probs_Ne, expert_Nk, self.group_sizes)
            if routers_only and last:
                return x, decision
            y_NH = self.experts(x_NH, expert_Nk, weight_Nk)
            if self.shared_expert is not None and self.alpha is not None:
                y_NH = y_NH + self._shared(self.shared_expert, self.alpha, x_NH, group_N, shield)
        return y_NH.view_as(x), decision

    def weights_and_group_rows(self) -> list[tuple[nn.Parameter, tuple[range, ...]]]:
        """Return each stacked weight that belongs to groups, and the rows of each group."""
        experts, singles = consecutive_ranges(self.group_sizes), consecutive_ranges([1] * self.num_groups)
        routers = singles if self.gate.weight.ndim == 3 else experts
        found = [(weight, experts) for weight in self.experts.parameters()]
        found += [(weight, routers) for weight in self.gate.parameters()]
        if isinstance(self.shared_expert, Experts) and self.alpha is not None:
            found += [(weight, singles) for weight in (*self.shared_expert.parameters(), self.alpha)]
        return found

    @staticmethod
    def _shared(
        expert: FeedForward | Experts, alpha: Tensor, x_NH: Tensor, group_N: Tensor, shield: SharedExpertGradScale | None
    ) -> Tensor:
        """Return ``alpha * SharedExpert(x)``; with one per group, a token uses its group's, and a shield finds nothing shared."""
        if isinstance(expert, Experts):
            return expert(x_NH, group_N.unsqueeze(1), alpha[group_N].unsqueeze(1))
        return alpha * (expert(x_NH, group_N) if shield is None else shielded(expert, x_NH, group_N, shield))

    def _group(self, x_NH: Tensor, task_logits: Tensor | None, group_ids: Tensor | None, routing: str) -> Tensor:
        if self.num_groups == 1:
            return torch.zeros(len(x_NH), dtype=torch.long, device=x_NH.device)
        if task_logits is not None and routing == "learned":
            return task_logits.argmax(-1)
        if group_ids is None:
            labels = "task_ids" if self.group_by == "task" else "modality_ids"
            remedy = "" if task_logits is None else ", or use routing='learned' to let the task router decide"
            raise ValueError(f"routing by label needs group_ids: pass {labels} to the model{remedy}")
        return group_ids.flatten()
