"""Batched sampling: each row's token follows from its own settings and its own uniform number, not from other rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unidecouple.generate.replay import fill
from unidecouple.generate.sampling import SamplingParams

_LEAST_SHARE: Final = 1e-6
"""Smaller values of ``top_p`` are raised to this one: in float32 they may be 0, which would leave no token at all."""


class Form(NamedTuple):
    """Which of the sampler's operators the current rows need.

    Attributes:
        greedy: all rows are greedy, and no row needs its uniform number.
        top_k: at least the largest ``top_k``, a power of two; 0 where no row has one.
        nucleus: some rows have a ``top_p`` below 1.
    """

    greedy: bool
    top_k: int
    nucleus: bool


class Sampler:
    """The settings of several rows as tensors, written again only when rows change.

    Args:
        params: one per row.
        device: of the logits.
        max_rows: rows to make room for; by default as many as ``params``.
    """

    def __init__(self, params: Sequence[SamplingParams], device: torch.device, max_rows: int | None = None) -> None:
        rows = len(params) if max_rows is None else max_rows
        self._greedy = torch.ones(rows, 1, dtype=torch.bool, device=device)
        self._rank = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._limited = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        self._guidance, self._temperature, self._share = torch.ones(3, rows, 1, device=device).unbind()
        self.set(params)

    def set(self, params: Sequence[SamplingParams]) -> None:
        """Give the first rows ``params``; the unused rows behind them become greedy."""
        fill(self._greedy, [p.greedy for p in params], rest=True)
        fill(self._guidance, [p.guidance_scale for p in params], rest=1)
        fill(self._temperature, [1.0 if p.greedy else p.temperature for p in params], rest=1)
        fill(self._rank, [max(p.top_k, 1) - 1 for p in params])
        fill(self._limited, [p.top_k > 0 for p in params])
        fill(self._share, [max(p.top_p, _LEAST_SHARE) for p in params], rest=1)
        top_k = max((p.top_k for p in params), default=0)
        self.form = Form(
            all(p.greedy for p in params),
            1 << (top_k - 1).bit_length() if top_k else 0,  # each row's own rank decides, so more candidates change nothing
            any(p.top_p < 1 for p in params),
        )

    def guide(self, cond: Tensor, uncond: Tensor) -> Tensor:
        """Classifier-free guidance: logits (B, V) of the first B rows with their prompt and without it, to (B, V)."""
        return uncond + self._guidance[: len(cond)] * (cond - uncond)

    def __call__(self, logits: Tensor, uniform: Tensor, form: Form | None = None) -> Tensor:
        """Tokens (B,) for logits (B, V) float32 and uniform numbers (B,) in [0, 1): the inverse of the cumulative distribution.

        Args:
            logits: of the first B rows.
            uniform: one number per row.
            form: operators to run, which a recorded step keeps; by default those that the rows need now.
        """
        form, rows = form or self.form, len(logits)
        best = logits.argmax(-1)
        if form.greedy:
            return best
        logits = logits / self._temperature[:rows]
        if form.top_k:
            likeliest = logits.topk(min(form.top_k, logits.shape[-1]), dim=-1).values
            least = likeliest.gather(-1, self._rank[:rows].clamp_max(likeliest.shape[-1] - 1))
            logits = logits.masked_fill(self._limited[:rows] & (logits < least), -torch.inf)
        probability = logits.softmax(-1)
        if form.nucleus:
            probability = _nucleus(probability, self._share[:rows])
        reached = probability.cumsum(-1)
        sampled = torch.searchsorted(reached, uniform.unsqueeze(-1) * reached[:, -1:], right=True)
        sampled = sampled.clamp_max(logits.shape[-1] - 1)
        return torch.where(self._greedy[:rows], best.unsqueeze(-1), sampled).squeeze(-1)


def _nucleus(probability: Tensor, share: Tensor) -> Tensor:
    """Zero all of (B, V) but the fewest likeliest entries that hold ``share`` (B, 1) together; the rest is not normalised again."""
    ordered = probability.sort(-1, descending=True).values
    before = ordered.cumsum(-1) - ordered
    least = ordered.masked_fill((before >= share) & (share < 1), torch.inf).amin(-1, keepdim=True)
    return probability.masked_fill(probability < least, 0.0)


def uniforms(seed: Sequence[int], length: int) -> Tensor:
    """Return (length,) float32 uniform numbers in [0, 1) of one sequence; they depend on its seed only."""
    return torch.from_numpy(np.random.default_rng(tuple(seed)).random(length, dtype=np.float32))
