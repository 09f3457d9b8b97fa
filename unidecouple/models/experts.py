"""Stacked SwiGLU experts, optionally with one LoRA pair each, applied to sorted tokens.

Shapes: N tokens, k experts per token, M = N k rows sorted by expert, E experts, H hidden size, I intermediate size.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class RowCounts:
    """Number of rows that each matrix multiplies, for rows sorted by matrix.

    Attributes:
        ends: (E,) int32, the end of the rows of each matrix.
    """

    ends: Tensor

    @classmethod
    def of(cls, sorted_ids: Tensor, num_matrices: int) -> RowCounts:
        """Count ascending ``sorted_ids`` (M,) below ``num_matrices``; unlike ``bincount`` this does not synchronise with a GPU."""
        every = torch.arange(num_matrices, device=sorted_ids.device)
        return cls(torch.searchsorted(sorted_ids, every, right=True, out_int32=True))

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Rows per matrix; on a GPU the first access synchronises."""
        ends = self.ends.tolist()
        return [end - begin for begin, end in itertools.pairwise([0, *ends])]


class Experts(nn.Module):
    """E feed-forward experts in stacked tensors, group-major, named as transformers' mixtures name them.

    Args:
        num_experts: E, over all groups.
        hidden_size: H.
        intermediate_size: I.
        backend: "grouped_mm" (``torch.nn.functional.grouped_mm``) or "loop"; equal up to rounding.
        lora_rank: r of the LoRA of each expert, 0 for none.
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
        self.trained_rows: dict[str, TrainedRows] = {}
        self.reset()

    def train_rows(self, name: str, rows: range) -> TrainedRows:
        """Let ``rows`` alone of the stacked matrices ``name`` have gradients; return them, for the optimizer."""
        stacked: nn.Parameter = getattr(self, name).requires_grad_(False)
        made = self.trained_rows[name] = TrainedRows(stacked.data[rows.start : rows.stop], rows, len(stacked))
        return made

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
        num_tokens, top_k = expert.shape
        sorted_M, order_M = expert.flatten().sort(stable=True)
        counts = RowCounts.of(sorted_M, self.num_experts)
        x_MH = x.index_select(0, order_M if top_k == 1 else order_M // top_k)
        y_MH = self._project(swiglu(self._project(x_MH, "gate_up", counts)), "down", counts)
        y_MH = (y_MH * weight.flatten().index_select(0, order_M).unsqueeze(-1).to(y_MH.dtype)).to(x.dtype)
        y_NkH = y_MH.index_select(0, inverse(order_M)).view(num_tokens, top_k, -1)
        return y_NkH.squeeze(1) if top_k == 1 else y_NkH.sum(1)

    def _project(self, rows: Tensor, name: str, counts: RowCounts) -> Tensor:
        stacked: Tensor = getattr(self, f"{name}_proj")
        if (trained := self.trained_rows.get(f"{name}_proj")) is not None:
            stacked = _WithRows.apply(stacked, trained)
        y = grouped_linear(rows, stacked, counts, self.backend)
        if self.lora_rank:
            a, b = getattr(self, f"{name}_lora_A"), getattr(self, f"{name}_lora_B")
            low = self.lora_scale * grouped_linear(rows, a, counts, self.backend)  # scaled where it is narrow
            y.add_(grouped_linear(low, b, counts, self.backend))  # in place: one tensor as large as the output less
        return y


class TrainedRows(nn.Parameter):
    """Some rows of a stacked weight as a parameter of their own, in the weight's memory.

    Attributes:
        rows: which.
        count: rows of the stacked weight.
    """

    rows: range
    count: int

    def __new__(cls, part: Tensor, rows: range, count: int) -> TrainedRows:
        """``part`` is a view of the stacked weight's ``rows``."""
        made = torch.Tensor._make_subclass(cls, part, True)
        made.rows, made.count = rows, count
        return made

    def widen(self, tensor: Tensor) -> Tensor:
        """An optimizer's state of the rows with zeros for all others; what has no such rows (a count) stays."""
        if tensor.ndim == 0 or len(tensor) % len(self.rows):
            return tensor
        each = len(tensor) // len(self.rows)
        whole = tensor.new_zeros(each * self.count, *tensor.shape[1:])
        self._mine(whole).copy_(tensor)
        return whole

    def narrow_to(self, tensor: Tensor, whole: Tensor) -> None:
        """Fill ``tensor``, a state of the rows, from ``whole``, which ``widen`` made."""
        tensor.copy_(whole if whole.shape == tensor.shape else self._mine(whole))

    def _mine(self, whole: Tensor) -> Tensor:
        each = len(whole) // self.count
        return whole[each * self.rows.start : each * self.rows.stop]


class _WithRows(torch.autograd.Function):
    """A stacked weight whose gradient is kept for ``TrainedRows`` alone."""

    @staticmethod
    def forward(ctx: Any, stacked: Tensor, trained: TrainedRows) -> Tensor:
        """``stacked`` itself."""
        ctx.rows = trained.rows
        return stacked.view_as(stacked)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        """A copy of the rows, so that the rest is freed."""
        return None, gradients[0][ctx.rows.start : ctx.rows.stop].clone()


def grouped_linear(rows: Tensor, stacked: Tensor, counts: RowCounts, backend: str) -> Tensor:
    """Multiply rows sorted by expert by their expert's matrix: (M, in), (E, out, in) -> (M, out).

    ``backend`` is one of ``EXPERT_BACKENDS``. On a GPU, grouped_mm outside of bfloat16 is itself a loop that waits for the host in
    every product; ours, which waits once per layer, takes its place.
    """
    if backend == "grouped_mm":
        kind = rows.device.type  # autocast does not know grouped_mm
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else stacked.dtype
        if kind != "cuda" or dtype == torch.bfloat16:
            return cast(Tensor, _GroupedProduct.apply(rows.to(dtype), stacked.to(dtype), counts.ends))
    parts = zip(rows.split(counts.sizes), stacked.unbind(0), strict=True)  # W[e] in a loop makes a full-size gradient each
    return torch.cat([F.linear(part, matrix) for part, matrix in parts])


class _GroupedProduct(torch.autograd.Function):
    """``grouped_mm`` whose gradient of a matrix without rows is zero, which torch's kernels do not promise (pytorch #172439)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, stacked: Tensor, ends: Tensor) -> Tensor:
        """See ``grouped_linear``; ``ends`` (E,) int32."""
        ctx.save_for_backward(rows if ctx.needs_input_grad[1] else None, stacked if ctx.needs_input_grad[0] else None, ends)
        return F.grouped_mm(rows, stacked.transpose(-2, -1), offs=ends)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Return gradients of the rows and of the matrices."""
        rows, stacked, ends = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        into_rows = None if stacked is None else F.grouped_mm(gradient, stacked, offs=ends)
        if rows is None:
            return into_rows, None, None
        into_stacked = F.grouped_mm(gradient.t(), rows, offs=ends)
        empty = ends == F.pad(ends, (1, 0))[:-1]
        return into_rows, into_stacked.masked_fill_(empty.view(-1, 1, 1), 0), None


def swiglu(both: Tensor) -> Tensor:
    """``silu(gate) * up`` of gates and ups side by side: (M, 2 I) -> (M, I)."""
    return cast(Tensor, _SwiGLU.apply(both))


class _SwiGLU(torch.autograd.Function):
    """Keeps its input alone, and writes both halves' gradients to one tensor."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        """See ``swiglu``."""
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, dim=-1)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient of both halves."""
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, dim=-1)
        into = torch.empty_like(both)
        into_gate, into_up = into.chunk(2, dim=-1)
        torch.mul(gradients[0], F.silu(gate), out=into_up)
        torch.ops.aten.silu_backward.grad_input(gradients[0] * up, gate, grad_input=into_gate)
        return into


def inverse(order: Tensor) -> Tensor:
    """Return the permutation that undoes ``order`` (M,) int64."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
