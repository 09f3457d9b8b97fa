"""Sampling of a token for each row, by the row's own settings and its own uniform number, whatever stands beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unidecouple import bounds
from unidecouple.generate.replay import fill

MOST_TEMPERATURE: Final = 100.0
MOST_GUIDANCE: Final = 100.0
"""Above it float32 logits may overflow to infinity minus infinity; published scales are 1 to 20."""
MOST_TOP_K: Final = 1 << 20

_COLDEST: Final = 1e-6
"""Logits divided by less overflow; below it the likeliest token is taken, which is the limit."""
_LEAST_SHARE: Final = 1e-6
"""Smaller ``top_p`` are taken for this one: in float32 they may be 0, which would leave no token at all."""


def check_guidance(config: object) -> None:
    """Refuse a ``guidance_scale`` of ``config`` that is no number from 0 to ``MOST_GUIDANCE``; None is left alone.

    Raises:
        ValueError: it is one.
    """
    bounds.between(0, MOST_GUIDANCE, config, "guidance_scale")


@dataclass(frozen=True)
class Choice:
    """How a sequence's tokens are chosen.

    Attributes:
        temperature: 0 is greedy; at most 100.
        top_k: among the k likeliest; 0 is all; at most 2^20.
        top_p: among the likeliest that hold this share of the probability together (arXiv 1904.09751); 1 is all.

    Raises:
        ValueError: one is out of its range, NaN, infinite or no number.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        bounds.between(0, MOST_TEMPERATURE, self, "temperature")
        bounds.whole(0, MOST_TOP_K, self, "top_k")
        bounds.above(0, self, "top_p")
        bounds.between(0, 1, self, "top_p")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken: at temperature 0, and so near it that float32 logits would overflow."""
        return self.temperature < _COLDEST


class Form(NamedTuple):
    """Which of the sampler's operators the rows at hand need.

    Attributes:
        greedy: all are; then nothing is drawn.
        most: at least the largest ``top_k``, a power of two; 0 where none has one.
        nucleus: some have a ``top_p`` below 1.
    """

    greedy: bool
    most: int
    nucleus: bool


class Sampler:
    """The settings of several rows as tensors, filled anew only when rows change.

    Args:
        choices: one a row.
        device: of the logits.
        most: rows that there is room for; by default as many as ``choices``.
    """

    def __init__(self, choices: Sequence[Choice], device: torch.device, most: int | None = None) -> None:
        rows = len(choices) if most is None else most
        self._greedy = torch.ones(rows, 1, dtype=torch.bool, device=device)
        self._temperature = torch.ones(rows, 1, device=device)
        self._rank = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._few = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        self._share = torch.ones(rows, 1, device=device)
        self.set(choices)

    def set(self, choices: Sequence[Choice]) -> None:
        """The first rows have ``choices`` from now on; those behind them are greedy, and no one's."""
        fill(self._greedy, [c.greedy for c in choices], rest=True)
        fill(self._temperature, [1.0 if c.greedy else c.temperature for c in choices], rest=1)
        fill(self._rank, [max(c.top_k, 1) - 1 for c in choices])
        fill(self._few, [c.top_k > 0 for c in choices])
        fill(self._share, [max(c.top_p, _LEAST_SHARE) for c in choices], rest=1)
        most = max((c.top_k for c in choices), default=0)
        self.form = Form(
            all(c.greedy for c in choices),
            1 << (most - 1).bit_length() if most else 0,  # a row's own rank decides, so that more candidates change nothing
            any(c.top_p < 1 for c in choices),
        )

    def __call__(self, logits: Tensor, uniform: Tensor, form: Form | None = None) -> Tensor:
        """Tokens (B,) for logits (B, V) float32 and uniform numbers (B,) in [0, 1): the inverse of the cumulative distribution.

        Args:
            logits: of the first B rows.
            uniform: theirs.
            form: by default what the rows need now; a step that is recorded is told.
        """
        form, rows = form or self.form, len(logits)
        best = logits.argmax(-1)
        if form.greedy:
            return best
        logits = logits / self._temperature[:rows]
        if form.most:
            likeliest = logits.topk(min(form.most, logits.shape[-1]), dim=-1).values
            least = likeliest.gather(-1, self._rank[:rows].clamp_max(likeliest.shape[-1] - 1))
            logits = logits.masked_fill(self._few[:rows] & (logits < least), -torch.inf)
        probability = logits.softmax(-1)
        if form.nucleus:
            probability = _nucleus(probability, self._share[:rows])
        reached = probability.cumsum(-1)
        drawn = torch.searchsorted(reached, uniform.unsqueeze(-1) * reached[:, -1:], right=True)
        drawn = drawn.clamp_max(logits.shape[-1] - 1)
        return torch.where(self._greedy[:rows], best.unsqueeze(-1), drawn).squeeze(-1)


def _nucleus(probability: Tensor, share: Tensor) -> Tensor:
    """(B, V) with all but the fewest likeliest entries that hold ``share`` (B, 1) set to zero; not normalised again."""
    ordered = probability.sort(-1, descending=True).values
    before = ordered.cumsum(-1) - ordered
    least = ordered.masked_fill((before >= share) & (share < 1), torch.inf).amin(-1, keepdim=True)
    return probability.masked_fill(probability < least, 0.0)


def uniforms(seed: Sequence[int], length: int) -> Tensor:
    """(length,) float32 uniform numbers in [0, 1) of one sequence, from its own seed and nothing else."""
    return torch.from_numpy(np.random.default_rng(tuple(seed)).random(length, dtype=np.float32))
