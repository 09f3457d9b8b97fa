"""Do the two tasks pull shared weights apart? Cosine of their gradients by layer and weight type, with its noise floor.

Two gradients of finite batches are never parallel even for one task, so a bare cosine says little. Beside it stands the same
cosine between two halves of the *same* mixture of data (Uni-X, arXiv 2509.24365): conflict shows where the tasks' cosine lies
below that floor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from unidecouple.batch import JointBatch, Task
from unidecouple.diagnose.probe import BATCH, BatchOf, Drawn, Probe, ProbeInput, ProbeResult, Skipped, task_names
from unidecouple.figures.estimates import SeedEstimate, estimate
from unidecouple.figures.grids import draw_grid, label_grid, name_room
from unidecouple.figures.style import WIDTH, Plot, canvas, to_svg
from unidecouple.figures.wording import decimal
from unidecouple.models.sharing import common_rows
from unidecouple.source import Progress

if TYPE_CHECKING:
    from unidecouple.models.base import UnifiedModel

LEAST_BATCH: Final = 8
"""Samples per batch where there are few records; gradients of fewer samples are mostly noise."""
MEASURED = ("cosine", "cosine_std", "floor", "floor_std", "norm_ratio")
"""What ``Conflict`` holds after its place, in order."""
_LEAST_SCALE = 0.05  # cosines below it are not blown up to full colour

PARTS = {f"self_attn.{name}.weight": name for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
PARTS |= {f"{home}.{part}_proj.weight": part for home in ("mlp", "mlp.shared_expert") for part in ("gate", "up", "down")}
PARTS |= {"mlp.experts.gate_up_proj": "experts in", "mlp.experts.down_proj": "experts out", "mlp.gate.weight": "expert router"}
"""What the matrices of a layer are called in rows, by their names in it."""
_IN_LAYER = re.compile(r"^model\.language_model\.layers\.(\d+)\.(.+)$")


@dataclass(frozen=True)
class Conflict:
    """Gradients of one weight matrix that both tasks use, over several batches.

    Of a stack of matrices it is the rows that both tasks use (``common_rows``), all together: the experts of a plain mixture,
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


def gradient_conflict(model: UnifiedModel, batch_of: BatchOf, batches: int = 8) -> list[Conflict]:
    """Measure ``model`` (left as it was, its gradients cleared) on 2 x ``batches`` batches of each task; no shared weight, no row.

    Four gradients of the shared weights are held at a time: two batches of each task.
    """
    shared = [part for part in _shared(model) if part.weight.is_floating_point()]  # compressed weights have no gradient
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


def measure(probe_input: ProbeInput, progress: Progress) -> ProbeResult:
    """``gradient_conflict``: {"step", "pairs", "rows"}, and "few" where more records would help. Cosines are means over the pairs.

    No two batches of a task share a record, else the floor would be the cosine of a gradient with itself. With fewer records than
    ``probe_input.batches`` asks for there are fewer pairs, and below 2 x ``BATCH`` records smaller batches.
    """
    if len(probe_input.tasks) < len(Task):
        return Skipped(f"there is data of {task_names(probe_input.tasks)} only, and a conflict needs two")
    wanted = 2 * probe_input.batches
    records = {task: probe_input.source.distinct_samples(task, wanted * BATCH) for task in Task}
    fewest = min(Task, key=lambda task: records[task])
    size = min(BATCH, records[fewest] // 2)
    if size < LEAST_BATCH:
        there = f"there are {records[fewest]} of {fewest.key}"
        return Skipped(f"{2 * LEAST_BATCH} different records of each task are needed, and {there}; give more with --data")
    total = min(wanted, records[fewest] // size // 2 * 2)
    model = probe_input.model

    def batch_of(task: Task, number: int) -> Any:
        if task is Task.MMU:
            progress("gradients", number, total)
        return probe_input.distinct_batch(task, size, number)

    rows = gradient_conflict(model, batch_of, total // 2)
    if not rows:
        return Skipped("the tasks share no weight matrix of the decoder")
    measured = {"step": probe_input.step, "pairs": total, "rows": [asdict(row) for row in rows]}
    few = f"{records[fewest]} records of {fewest.key} are few, so the cosines are noisy: give {wanted * BATCH} or more with --data"
    return measured | ({"few": few} if records[fewest] < wanted * BATCH else {})


def draw(measured: Any) -> Drawn:
    """Maps of the cosines and of the gradients' sizes."""
    conflict, title = conflict_of(measured), "Gradient conflict"
    return [
        ("Direction", conflict_map("conflict", title, [conflict], color_limit([conflict]))),
        ("Size", ratio_map("ratio", title, conflict)),
    ]


@dataclass(frozen=True)
class ConflictLog:
    """``Conflict`` of every weight matrix that both tasks use, after ``step`` steps (None where unknown).

    Cosines and floors are means over ``pairs`` pairs of batches each; 1 where the log does not say.
    """

    step: int | None
    matrices: tuple[Conflict, ...]
    pairs: int = 1


def conflict_of(content: Mapping[str, Any]) -> ConflictLog:
    """The content of ``conflict.json`` as typed values."""
    measured = (row for row in content["rows"] if row["cosine"] is not None)
    return ConflictLog(content["step"], tuple(Conflict(**row) for row in measured), content.get("pairs", 1))


def mean_conflicts(seeds: Sequence[ConflictLog]) -> list[tuple[Conflict, bool]]:
    """Means over ``seeds`` (at least one) of the matrices that all of them measured, and whether each differs from its floor.

    It does if the 95% interval of ``cosine - floor`` over seeds excludes zero; of one seed, if the two lie more than twice their
    joint standard error over batches apart. (Logs of earlier versions do not say of how many batches they are; there it is the
    spread itself, a strict test.)
    """
    by_place = [{(matrix.layer, matrix.part): matrix for matrix in log.matrices} for log in seeds]
    out = []
    for place in by_place[0]:
        found = [matrices[place] for matrices in by_place if place in matrices]
        if len(found) < len(by_place):
            continue
        gap = estimate([matrix.cosine - matrix.floor for matrix in found])
        if gap.count == 1:
            error = float(np.hypot(found[0].cosine_std, found[0].floor_std)) / math.sqrt(seeds[0].pairs)
            gap = SeedEstimate(gap.mean, 2 * error, 1)
        means = (float(np.mean([getattr(matrix, name) for matrix in found])) for name in MEASURED)
        out.append((Conflict(*place, *means), gap.is_shown))
    return out


def color_limit(logs: Sequence[ConflictLog]) -> float:
    """Largest absolute cosine of ``logs``, so that maps drawn with one limit compare."""
    return max([_LEAST_SCALE, *(max(abs(matrix.cosine), abs(matrix.floor)) for log in logs for matrix in log.matrices)])


def conflict_map(name: str, title: str, seeds: Sequence[ConflictLog], limit: float) -> Plot | None:
    """Cosine by layer and weight type, its floor, and the difference, marked where the two differ. None if empty.

    Colours run from ``-limit`` to ``limit``; see ``color_limit``.
    """
    found = mean_conflicts(seeds)
    if not found:
        return None
    matrices = [matrix for matrix, _ in found]
    layers, parts = sorted({matrix.layer for matrix in matrices}), list(dict.fromkeys(matrix.part for matrix in matrices))
    grids = {
        "Between the tasks": _grid([(matrix, matrix.cosine) for matrix in matrices], layers, parts),
        "Noise floor: within one task": _grid([(matrix, matrix.floor) for matrix in matrices], layers, parts),
        "Tasks minus floor (• beyond noise)": _grid([(matrix, matrix.cosine - matrix.floor) for matrix in matrices], layers, parts),
    }
    figure, axes = canvas(WIDTH, 1.1 + 0.34 * len(layers) + name_room(parts, len(grids)), 1, len(grids))
    marked = {(layers.index(matrix.layer), parts.index(matrix.part)) for matrix, differs in found if differs}
    for axis, (panel, grid) in zip(axes, grids.items(), strict=True):
        dots = marked if panel.startswith("Tasks") else set()
        texts = {at: decimal(value, 2) + " •" * (at in dots) for at, value in np.ndenumerate(grid) if not np.isnan(value)}
        draw_grid(axis, grid, limit, texts=texts)
        label_grid(axis, panel, parts, [f"layer {layer}" for layer in layers], len(grids))
    below = sum(differs and matrix.cosine < matrix.floor for matrix, differs in found)
    across, within = (float(np.mean([getattr(matrix, name) for matrix in matrices])) for name in ("cosine", "floor"))
    rule = "95% interval over seeds" if len(seeds) > 1 else _rule(seeds[0])
    caption = (
        f"Mean cosine {decimal(across, 3, plus=True)} between the tasks, {decimal(within, 3, plus=True)} within one task. "
        f"In {below} of {len(found)} weight matrices the tasks' cosine lies below its floor by more than noise ({rule})."
    )
    return Plot(to_svg(figure, name), f"{title}: cosine of the two tasks' gradients by layer and weight type. {caption}", caption)


def _rule(log: ConflictLog) -> str:
    """How one seed's matrices are distinguished from noise."""
    if log.pairs == 1:
        return "one seed: more than twice the spread over batches"
    return f"twice the standard error over {log.pairs} pairs of batches; about one matrix in 40 would by chance"


def ratio_map(name: str, title: str, log: ConflictLog) -> Plot | None:
    """Norm of generation's gradient over understanding's by layer and weight type, on a logarithmic scale of colours."""
    if not log.matrices:
        return None
    layers, parts = sorted({matrix.layer for matrix in log.matrices}), list(dict.fromkeys(matrix.part for matrix in log.matrices))
    grid = _grid([(matrix, matrix.norm_ratio) for matrix in log.matrices], layers, parts)
    figure, axes = canvas(WIDTH, 1.1 + 0.34 * len(layers))
    limit = max(1.0, float(np.nanmax(np.abs(np.log2(grid)))))
    texts = {at: f"{value:.2g}" if value < 10 else f"{value:.0f}" for at, value in np.ndenumerate(grid) if not np.isnan(value)}
    draw_grid(axes[0], np.log2(grid), limit, "PuOr_r", texts)
    label_grid(axes[0], "Gradient norm, generation over understanding", parts, [f"layer {layer}" for layer in layers], 1)
    typical = float(np.nanmedian(grid))
    larger = "generation's" if typical > 1 else "understanding's"
    caption = (
        f"The median matrix has a gradient {max(typical, 1 / typical):.1f} times as large from {larger} loss (orange: generation "
        "is larger, violet: understanding)."
    )
    return Plot(to_svg(figure, name), f"{title}: {caption}", caption)


def _grid(values: Sequence[tuple[Conflict, float]], layers: Sequence[int], parts: Sequence[str]) -> np.ndarray:
    """(layers, parts), NaN where nothing was measured."""
    grid = np.full((len(layers), len(parts)), np.nan)
    for matrix, value in values:
        grid[layers.index(matrix.layer), parts.index(matrix.part)] = value
    return grid


PROBE: Final = Probe(
    "conflict",
    "Do the tasks pull shared weights apart?",
    measure,
    draw,
    "The cosine of the tasks' gradients in every weight matrix that both use, beside the cosine of two batches of one task: "
    "even those do not agree fully, and conflict is what lies below that floor. The second map shows whose gradient is larger. "
    "Experts of one layer are one matrix here, all together; weights that are one task's own have no cell.",
    "Cells with a dot whose difference is red, above all where the cosine itself is below zero: a step for one task "
    "undoes the other's. Where one gradient is many times larger, it decides where shared weights go; then change mmu_coeff "
    "and t2i_coeff before anything else. In experts that both tasks may use, a cosine near zero may also mean that each has "
    "found experts of its own: see where tokens are routed.",
    "Uni-X, arXiv 2509.24365; UniDecouple, arXiv 2506.03591",
)
