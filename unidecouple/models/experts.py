"""Stacked SwiGLU experts, optionally with one LoRA pair each, applied to sorted tokens.

Shapes: N tokens, k experts per token, M = N k rows sorted by expert, E experts, H hidden size, I intermediate size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Experts(nn.Module):
    """E feed-forward experts in stacked tensors, group-major, named as transformers' mixtures name them.

    Args:
        num_experts: E, over all groups.
        hidden_size: H.
        intermediate_size: I.
        backend: "grouped_mm" (``torch.nn.functional.grouped_mm``) or "loop"; equal up to rounding.
        lora_rank: r of each expert's own low-rank update, 0 for none.
        lora_scale: lora_alpha / r.
    """

    def __init__(
        self, num_experts: int, hidden_size: int, intermediate_size: int, backend: str, lora_rank: int, lora_scale: float
    ) -> None:
        super().__init__()
        self.num_experts, self.backend, self.lora_rank, self.lora_scale = num_experts, backend, lora_rank, lora_scale
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * intermediate_size, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, intermediate_size))
        if lora_rank:
            self.gate_up_lora_A = nn.Parameter(torch.empty(num_experts, lora_rank, hidden_size))
            self.gate_up_lora_B = nn.Parameter(torch.zeros(num_experts, 2 * intermediate_size, lora_rank))
            self.down_lora_A = nn.Parameter(torch.empty(num_experts, lora_rank, intermediate_size))
            self.down_lora_B = nn.Parameter(torch.zeros(num_experts, hidden_size, lora_rank))
        self.reset()

    def reset(self, std: float = 0.02) -> None:
        """Initialise base weights at random; LoRA with A random, B zero."""
        nn.init.normal_(self.gate_up_proj, std=std)
        nn.init.normal_(self.down_proj, std=std)
        if self.lora_rank:
            self.reset_lora()

    def reset_lora(self) -> None:
        """Initialise A (Kaiming uniform) and B (zero)."""
        for a, b in ((self.gate_up_lora_A, self.gate_up_lora_B), (self.down_lora_A, self.down_lora_B)):
            nn.init.uniform_(a, -1 / math.sqrt(a.shape[-1]), 1 / math.sqrt(a.shape[-1]))
            nn.init.zeros_(b)

    def forward(self, x: Tensor, expert: Tensor, weight: Tensor) -> Tensor:
        """Sum the outputs of the chosen experts.

        Every stacked tensor stays in the graph even when an expert gets no token: sharded and data-parallel training need a
        gradient of zero there, not None.

        Args:
            x: (N, H) tokens.
            expert: (N, k) int64 experts of each token.
            weight: (N, k) their weights.

        Returns:
            (N, H).
        """
        top_k = expert.shape[1]
        expert_M = expert.flatten()
        order_M = expert_M.argsort(stable=True)
        counts_E = torch.bincount(expert_M, minlength=self.num_experts)
        x_MH = x[order_M // top_k]
        gate_MI, up_MI = self._project(x_MH, self.gate_up_proj, "gate_up", counts_E).chunk(2, dim=-1)
        y_MH = self._project(F.silu(gate_MI) * up_MI, self.down_proj, "down", counts_E)
        y_MH = y_MH * weight.flatten()[order_M].unsqueeze(-1).to(y_MH.dtype)
        return torch.zeros_like(x).index_add(0, order_M // top_k, y_MH.to(x.dtype))

    def _project(self, rows: Tensor, stacked: Tensor, name: str, counts: Tensor) -> Tensor:
        y = grouped_linear(rows, stacked, counts, self.backend)
        if self.lora_rank:
            a, b = getattr(self, f"{name}_lora_A"), getattr(self, f"{name}_lora_B")
            low = self.lora_scale * grouped_linear(rows, a, counts, self.backend)  # scaled where it is narrow
            y.add_(grouped_linear(low, b, counts, self.backend))  # in place: one tensor as large as the output less
        return y


def grouped_linear(rows: Tensor, stacked: Tensor, counts: Tensor, backend: str) -> Tensor:
    """Multiply rows sorted by expert by their expert's matrix: (M, in), (E, out, in) -> (M, out).

    ``counts`` (E,) int64 are the rows of each expert; ``backend`` is one of ``EXPERT_BACKENDS``.
    """
    if backend == "grouped_mm":
        kind = rows.device.type  # autocast does not know grouped_mm
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else stacked.dtype
        ends = counts.cumsum(0).to(torch.int32)
        return F.grouped_mm(rows.to(dtype), stacked.to(dtype).transpose(-2, -1), offs=ends)
    parts = zip(rows.split(counts.tolist()), stacked.unbind(0), strict=True)  # W[e] in a loop makes a full-size gradient each
    return torch.cat([F.linear(part, matrix) for part, matrix in parts])
