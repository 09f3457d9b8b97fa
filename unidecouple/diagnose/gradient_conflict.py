"""Do the two tasks pull shared weights apart? Cosine of their gradients by layer and weight type, with its noise floor.

Two gradients of finite batches are never parallel even for one task, so a bare cosine says little. Beside it stands the same
cosine between two halves of the *same* mixture of data (Uni-X, arXiv 2509.24365): conflict shows where the tasks' cosine lies
below that floor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from unidecouple.batch import JointBatch, Task
from unidecouple.models.base import UnifiedModel
from unidecouple.models.sharing import common_rows

PARTS = {f"self_attn.{name}.weight": name for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
PARTS |= {f"{home}.{part}_proj.weight": part for home in ("mlp", "mlp.shared_expert") for part in ("gate", "up", "down")}
PARTS |= {"mlp.experts.gate_up_proj": "experts in", "mlp.experts.down_proj": "experts out", "mlp.gate.weight": "expert router"}
"""What the matrices of a layer are called in rows, by their names in it."""
_IN_LAYER = re.compile(r"^model\.language_model\.layers\.(\d+)\.(.+)$")
BatchOf = Callable[[Task, int], JointBatch]
"""Gives a batch of one task, by running number."""


@dataclass(frozen=True)
class Conflict:
    """Gradients of one weight matrix that both tasks use, over several batches.

    Of a stack of matrices it is the rows that are no task's own (``common_rows``), all together: the experts of a plain mixture,
    or the one set of BAGEL's split that text of both tasks goes through.

    Attributes:
        layer: decoder layer.
        part: weight type, of ``PARTS``.
        cosine, cosine_std: of the understanding and the generation gradient; mean and standard deviation over batches.
        floor, floor_std: of two gradients of the same task's data, averaged over the tasks.
        norm_ratio: |g_t2i| / |g_mmu|.
    """

    layer: int
    part: str
    cosine: float
    cosine_std: float
    floor: float
    floor_std: float
    norm_ratio: float

    def to_json(self) -> dict[str, float | str]:
        """As a JSON object."""
        return asdict(self)


def gradient_conflict(model: UnifiedModel, batch_of: BatchOf, batches: int = 8) -> list[Conflict]:
    """Measure ``model`` (left as it was, its gradients cleared) on 2 x ``batches`` batches of each task; no shared weight, no row.

    Four gradients of the shared weights are held at a time: two batches of each task.
    """
    shared = list(_shared(model))
    if not shared:
        return []
    wanted = [part.weight.requires_grad for part in shared]
    for part in shared:
        part.weight.requires_grad_(True)
    across: list[list[Tensor]] = [[] for _ in shared]
    within: list[list[Tensor]] = [[] for _ in shared]
    ratios: list[list[Tensor]] = [[] for _ in shared]
    for first in range(0, 2 * batches, 2):
        pair = [[_gradients(model, batch_of(task, first + half), task, shared) for task in Task] for half in range(2)]
        for index in range(len(shared)):
            for mmu, t2i in pair:
                across[index].append(_cosine(mmu[index], t2i[index]))
                ratios[index].append(t2i[index].norm() / mmu[index].norm().clamp_min(1e-12))
            within[index] += [_cosine(one[index], other[index]) for one, other in zip(*pair, strict=True)]
    rows = []
    for index, part in enumerate(shared):
        part.weight.requires_grad_(wanted[index])
        cosines, floors = torch.stack(across[index]), torch.stack(within[index])
        if not cosines.any():  # a gradient of zeros each time: one task never comes here, whatever the structure allows
            continue
        spread = (cosines.std().item(), floors.std().item())
        ratio = torch.stack(ratios[index]).median().item()
        rows.append(Conflict(part.layer, part.part, cosines.mean().item(), spread[0], floors.mean().item(), spread[1], ratio))
    return rows


@dataclass(frozen=True)
class _Shared:
    """A weight that both tasks use, where it stands, and which of its rows they share: None is all."""

    layer: int
    part: str
    weight: torch.nn.Parameter
    rows: list[int] | None


def _shared(model: UnifiedModel) -> Iterator[_Shared]:
    common = common_rows(model)
    for name, weight in model.named_parameters():
        place = _IN_LAYER.match(name)
        rows = common.get(id(weight))
        if place and place[2] in PARTS and rows != []:
            yield _Shared(int(place[1]), PARTS[place[2]], weight, None if rows is None or len(rows) == len(weight) else rows)


def _gradients(model: UnifiedModel, batch: JointBatch, task: Task, shared: Sequence[_Shared]) -> list[Tensor]:
    """Flat gradients of ``task``'s loss in what is shared; zero where a weight has no part in it."""
    weights = [part.weight for part in shared]
    found = torch.autograd.grad(model(batch=batch).loss(task), weights, allow_unused=True)
    whole = [torch.zeros_like(p) if g is None else g for g, p in zip(found, weights, strict=True)]
    return [(g if part.rows is None else g[part.rows]).flatten() for g, part in zip(whole, shared, strict=True)]


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a, b) / (a.norm() * b.norm()).clamp_min(1e-12)
