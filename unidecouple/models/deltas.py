"""Weights of one task beside a layer's own: what one task's tokens use in their place, in the smallest form that holds it.

``UniLlamaConfig.task_deltas`` lists them: task -> module of the decoder -> form. Tokens of other tasks use the layer's own weights,
bit for bit as without any delta. Nothing depends on the data's values, so a step can be recorded and sharded.

Forms of a matrix W of shape (out, in), with y of a token of the task:

- ``rank:r``: ``y = W x + U (D x)``, U (out, r), D (r, in); a low-rank residual (LoRA's form, arXiv 2106.09685).
- ``full``: ``y = W' x``, another matrix.
- ``bits``: ``y = W x + s (S x)``, S of signs, one bit each, and one scale s (BitDelta, arXiv 2402.10193, section 3.1).
- ``sparse:k``: the same with signs of k entries alone; S is zero elsewhere (ComPEFT, arXiv 2311.13171).

A norm takes ``full``. The word embeddings take ``rows:n``: n rows of the table are replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unidecouple.batch import TASK_KEYS, Task

if TYPE_CHECKING:
    from unidecouple.models.configuration import UniLlamaConfig

DELTAS = "deltas"
"""Name of a module's deltas: a weight is called ``<module>.deltas.<task>.<leaf>``."""
EMBEDDINGS, HEAD = "embed_tokens", "lm_head"
LARGEST_SPARSE = 2**31
"""Entries of the largest matrix that takes ``sparse:k``: places are of 32 bits."""


class MatrixDelta(Protocol):
    """What replaces or adds to a linear layer."""

    def __call__(self, x: Tensor, y: Tensor, mine: Tensor) -> Tensor:
        """Outputs (..., out) from inputs ``x`` (..., in) and the layer's own ``y``; ``mine`` (..., 1) bool: the task's tokens."""


class LowRankDelta(nn.Module):
    """``rank:r``."""

    def __init__(self, out_features: int, in_features: int, rank: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(out_features, rank))
        self.down = nn.Parameter(torch.zeros(rank, in_features))

    def forward(self, x: Tensor, y: Tensor, mine: Tensor) -> Tensor:
        """See ``MatrixDelta``."""
        return y + F.linear(F.linear(x, self.down) * mine.to(x.dtype), self.up).to(y.dtype)

    def merged(self, weight: Tensor) -> Tensor:
        """Return the task's matrix, summed in float64 and rounded once."""
        return (weight.double() + self.up.double() @ self.down.double()).to(weight.dtype)


class FullDelta(nn.Module):
    """``full``, of a linear layer or of a norm."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor, y: Tensor, mine: Tensor) -> Tensor:
        """See ``MatrixDelta``."""
        return torch.where(mine, F.linear(x, self.weight).to(y.dtype), y)

    def merged(self, weight: Tensor) -> Tensor:
        """Return the task's weight."""
        return self.weight.to(weight.dtype)


class SignDelta(nn.Module):
    """``bits``: signs eight to a byte along the inputs; the scale trains, the signs do not."""

    sign: Tensor

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.register_buffer("sign", torch.zeros(out_features, -(-in_features // 8), dtype=torch.uint8))
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, y: Tensor, mine: Tensor) -> Tensor:
        """See ``MatrixDelta``."""
        signed = F.linear(x * mine.to(x.dtype), unpack(self.sign, self.in_features).to(x.dtype))
        return y + (self.scale * signed).to(y.dtype)

    def merged(self, weight: Tensor) -> Tensor:
        """Return the task's matrix."""
        return (weight.double() + self.scale.double() * unpack(self.sign, self.in_features)).to(weight.dtype)


class SparseSignDelta(nn.Module):
    """``sparse:k``: places of k entries in row-major order, ascending, and their signs; the scale trains, the others do not."""

    index: Tensor
    sign: Tensor

    def __init__(self, out_features: int, in_features: int, count: int) -> None:
        super().__init__()
        self.shape = (out_features, in_features)
        self.register_buffer("index", torch.zeros(count, dtype=torch.int32))
        self.register_buffer("sign", torch.zeros(-(-count // 8), dtype=torch.uint8))
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, y: Tensor, mine: Tensor) -> Tensor:
        """See ``MatrixDelta``."""
        return y + (self.scale * F.linear(x * mine.to(x.dtype), self._signs(x.dtype))).to(y.dtype)

    def merged(self, weight: Tensor) -> Tensor:
        """Return the task's matrix."""
        return (weight.double() + self.scale.double() * self._signs(torch.float64)).to(weight.dtype)

    def _signs(self, dtype: torch.dtype) -> Tensor:
        """Matrix (out, in) of -1, 0 and 1."""
        signs = unpack(self.sign.unsqueeze(0), len(self.index))[0].to(dtype)
        flat = torch.zeros(self.shape[0] * self.shape[1], dtype=dtype, device=signs.device)
        return flat.index_copy(0, self.index.long(), signs).view(self.shape)


class RowsDelta(nn.Module):
    """``rows:n`` of a table of word embeddings; ``rows`` ascend."""

    rows: Tensor

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(count, dtype=torch.long))
        self.weight = nn.Parameter(torch.zeros(count, width))

    def forward(self, ids: Tensor, y: Tensor, mine: Tensor) -> Tensor:
        """Return the embeddings (..., H) of ``ids`` (...) from the table's own ``y``."""
        place = torch.searchsorted(self.rows, ids).clamp_max(len(self.rows) - 1)
        hit = (self.rows[place] == ids).unsqueeze(-1) & mine
        return torch.where(hit, F.embedding(place, self.weight).to(y.dtype), y)

    def merged(self, weight: Tensor) -> Tensor:
        """Return the task's table."""
        return weight.index_copy(0, self.rows, self.weight.to(weight.dtype))


Delta = LowRankDelta | FullDelta | SignDelta | SparseSignDelta | RowsDelta


def pack(signs: Tensor) -> Tensor:
    """(out, in) bool -> (out, ceil(in / 8)) uint8, the first of eight in the lowest bit."""
    padded = F.pad(signs, (0, -signs.shape[1] % 8)).unflatten(1, (-1, 8)).to(torch.uint8)
    return (padded << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, in_features: int) -> Tensor:
    """Reverse ``pack``, to int8: 1 where a bit is set, else -1."""
    bits = (packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    return bits.flatten(1)[:, :in_features].to(torch.int8) * 2 - 1


def make_delta(form: str, shape: tuple[int, ...]) -> Delta:
    """Return the delta of ``form`` for a weight of ``shape``.

    Raises:
        ValueError: the form is unknown, or not one of such a weight.
    """
    kind, _, number = form.partition(":")
    count = int(number) if number.isdecimal() else 0
    if form == "full":
        return FullDelta(*shape)
    if form == "bits" and len(shape) == 2:
        return SignDelta(*shape)
    if kind == "rank" and len(shape) == 2 and 1 <= count <= min(shape):
        return LowRankDelta(*shape, count)
    if kind == "sparse" and len(shape) == 2 and 1 <= count <= shape[0] * shape[1] <= LARGEST_SPARSE:
        return SparseSignDelta(*shape, count)
    if kind == "rows" and len(shape) == 2 and 1 <= count <= shape[0]:
        return RowsDelta(count, shape[1])
    raise ValueError(
        f"task_deltas has {form!r} for a weight of shape {shape}: use rank:R, full, bits or sparse:K, and rows:N for embeddings"
    )


def drawn_labels(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return task and position labels (1, 1) of tokens to be generated, none of which is a BOS."""
    task = torch.full((1, 1), int(Task.T2I), device=tokens.device)
    return task, torch.ones_like(task)


def attach_deltas(owner: nn.Module, config: UniLlamaConfig, only: str | None = None) -> None:
    """Add the deltas of ``config.task_deltas`` to the modules of ``owner`` that they name.

    Args:
        owner: the decoder; or, with ``only``, what has the text head.
        config: of the decoder.
        only: name of the one module to be treated; None: all but the text head, which is not the decoder's.

    Raises:
        ValueError: one names no linear layer, norm or table of word embeddings, or its form does not fit.
    """
    for task, forms in config.task_deltas.items():
        for name, form in forms.items():
            if name != (only or name) or (only is None and name == HEAD):
                continue
            try:
                module = owner.get_submodule(name)
                shape = tuple(module.get_parameter("weight").shape)
            except AttributeError:
                raise ValueError(f"task_deltas of {task!r} has {name!r}, which this decoder has not") from None
            if not hasattr(module, DELTAS) or (name == EMBEDDINGS) != form.startswith("rows:"):
                raise ValueError(f"task_deltas of {task!r} has {form!r} for {name!r}, which does not take it")
            cast(nn.ModuleDict, module.get_submodule(DELTAS))[task] = make_delta(form, shape)


def of_tasks(deltas: nn.ModuleDict, group: Tensor | None) -> Iterator[tuple[Delta, Tensor]]:
    """Each delta and its tokens (..., 1) bool; none without ``group`` (...), the task of each token."""
    for task, delta in deltas.items() if group is not None else ():
        assert group is not None
        yield cast(Delta, delta), group.eq(TASK_KEYS.index(task)).unsqueeze(-1)


class TaskEmbedding(nn.Embedding):
    """Word embeddings, some rows of which are another task's."""

    def __init__(self, rows: int, width: int, padding_idx: int | None) -> None:
        super().__init__(rows, width, padding_idx)
        self.deltas = nn.ModuleDict()

    def forward(self, ids: Tensor, group: Tensor | None = None) -> Tensor:
        """(...) int64 -> (..., H); ``group`` (...) is the task of each token."""
        y = super().forward(ids)
        for delta, mine in of_tasks(self.deltas, group):
            y = delta(ids, y, mine)
        return y


def sequence_groups(group_ids: Tensor, position_ids: Tensor) -> Tensor:
    """Return the groups (B, T) with each BOS in the group of the token after it; padding before a BOS follows it.

    A delta's task is that of a whole sequence, so that a task's sequences are what its own model makes of them. (Elsewhere the BOS
    counts as understanding, see ``Task``.)
    """
    length = group_ids.shape[1]
    place = torch.arange(length, device=group_ids.device).expand_as(group_ids)
    ahead = torch.where(position_ids > 0, place, length).flip(-1).cummin(-1).values.flip(-1)
    return torch.where(ahead < length, group_ids.gather(1, ahead.clamp_max(length - 1)), group_ids)


def count_forms(forms: Mapping[str, str]) -> dict[str, int]:
    """Return how many modules have each kind of form."""
    kinds = [form.partition(":")[0] for form in forms.values()]
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
