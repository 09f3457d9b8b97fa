"""Are an image and its words aligned? Mutual nearest neighbours of their representations by depth.

The measure is mutual kNN of the Platonic Representation Hypothesis (arXiv 2405.07987); UniFork (arXiv 2506.17202, section on
modality alignment) reads it by layer for the two tasks: in understanding alignment grows with depth, in generation it rises and
falls again, and one shared decoder must do both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unidecouple.batch import IGNORE, NO_IMAGE_TOKEN, Batch, Task
from unidecouple.diagnose.probe import BATCH, Drawn, Probe, ProbeInput, ProbeResult, Skipped
from unidecouple.figures.style import TASK_COLORS, WIDTH, Plot, canvas, legend, name_panel, to_svg
from unidecouple.figures.wording import TASK_NAMES, decimal
from unidecouple.models.base import UnifiedModel
from unidecouple.source import Progress

NEIGHBOURS = 10
"""k where there are pairs enough, as in the Platonic paper."""
LEAST_PAIRS = 8


class TooFewPairsError(ValueError):
    """There are not images enough with words of their own to speak of neighbours."""


@dataclass(frozen=True)
class DepthAlignment:
    """DepthAlignment of images and words of one task at one depth.

    Attributes:
        task: key of the task; images are seen in "mmu", drawn in "t2i".
        layer: 0 is the input of the first layer, the last is the decoder's output.
        apart: of features computed each from its own sequence: neither could copy from the other, as in the Platonic paper.
        together: of features of one sequence, as the task runs; what comes later has attended to what came first.
    """

    task: str
    layer: int
    apart: float
    together: float


def mutual_knn(a: Tensor, b: Tensor, k: int) -> float:
    """Mean share of the k nearest neighbours (cosine, itself left out) that an item has in both ``a`` and ``b``.

    1 where both order their items alike; k / (N - 1) on average where they have nothing to do with each other.

    Args:
        a, b: (N, D) and (N, D') features of the same N items.
        k: neighbours, at most N - 1.
    """
    if not 1 <= k < len(a) or len(a) != len(b):
        raise ValueError(f"k={k} neighbours among {len(a)} and {len(b)} items: both need the same items, and more than k of them")
    same = torch.zeros(len(a), len(a), device=a.device)
    for features in (a, b):
        unit = F.normalize(features.double(), dim=-1)
        nearest = (unit @ unit.T).fill_diagonal_(-torch.inf).topk(k, dim=-1).indices
        same.scatter_add_(1, nearest, torch.ones_like(nearest, dtype=same.dtype))
    return ((same == 2).sum() / (k * len(a))).item()


def chance(pairs: int, k: int) -> float:
    """``mutual_knn`` of unrelated features, on average: k of N - 1 neighbours are shared with probability k / (N - 1) each."""
    return k / (pairs - 1)


@torch.no_grad()
def alignment(
    model: UnifiedModel, task: Task, batches: Iterable[Batch], k: int = NEIGHBOURS
) -> tuple[list[DepthAlignment], int, int]:
    """Alignment of ``task`` by depth over the pairs of ``batches``, mean-pooled over the tokens of each side.

    The words of understanding are its answers, those of generation everything before the image. Rows without an image or
    without words are left out, and rows whose words came before: equal words are each other's neighbours by right.

    Returns:
        One entry a depth, the number of pairs, and the neighbours looked at (``k``, or a tenth of the pairs if fewer).

    Raises:
        TooFewPairsError: fewer than ``LEAST_PAIRS`` pairs.
    """
    sides: list[list[Tensor]] = [[], [], [], []]  # each (depths, rows, H): image and words together, then each alone
    known: set[tuple[int, ...]] = set()
    for batch in batches:
        picture, words = _places(model, task, batch)
        rows = [row for row in range(len(picture)) if picture[row].any() and words[row].any() and _is_new(batch, words, row, known)]
        if not rows:
            continue
        together = _states(model, batch)
        alone = _before(picture) | picture
        alone[:, 0] = True
        pooled = (
            _pool(together, picture),
            _pool(together, words),
            _alone(model, batch, alone, picture),
            _alone(model, batch, batch.attention_mask & ~picture, words),
        )
        for side, features in zip(sides, pooled, strict=True):
            side.append(features[:, rows])
    pairs = sum(part.shape[1] for part in sides[0])
    if pairs < LEAST_PAIRS:
        raise TooFewPairsError(f"{pairs} images with different words are too few to compare neighbours: give {LEAST_PAIRS} or more")
    k = min(k, max(1, pairs // 10))
    seen, said, seen_alone, said_alone = (torch.cat(side, dim=1) for side in sides)
    found = [
        DepthAlignment(
            task.key, layer, mutual_knn(seen_alone[layer], said_alone[layer], k), mutual_knn(seen[layer], said[layer], k)
        )
        for layer in range(len(seen))
    ]
    return found, pairs, k


def _places(model: UnifiedModel, task: Task, batch: Batch) -> tuple[Tensor, Tensor]:
    """(B, T) where the image's tokens are, and where its words are."""
    drawn = batch.image_tokens != NO_IMAGE_TOKEN
    if task is Task.T2I:
        sources = (batch.input_ids == model.config.image_token_id) | (batch.embedded_image_tokens != batch.image_tokens)
        return drawn, batch.attention_mask & ~drawn & ~sources & (drawn.flip(1).cumsum(1).flip(1) > 0)
    return (batch.input_ids == model.config.image_token_id) & ~drawn & batch.attention_mask, batch.labels != IGNORE


def _is_new(batch: Batch, words: Tensor, row: int, known: set[tuple[int, ...]]) -> bool:
    key = tuple(batch.input_ids[row, words[row]].tolist())
    before = key in known
    known.add(key)
    return not before


def _before(picture: Tensor) -> Tensor:
    """The token in front of each stretch of an image: the image-start token."""
    return F.pad(picture[:, 1:], (0, 1)) & ~picture


def _states(model: UnifiedModel, batch: Batch) -> Tensor:
    """(depths, B, T, H) of one forward pass."""
    return torch.stack(model.decode_batch(batch, output_hidden_states=True).hidden_states or ())


def _pool(states: Tensor, places: Tensor) -> Tensor:
    """Means over ``places`` (B, T), (depths, B, H) float32; zero where a row has none."""
    weight = places.float() / places.sum(1, keepdim=True).clamp_min(1)
    return torch.einsum("dbth,bt->dbh", states.float(), weight)


def _alone(model: UnifiedModel, batch: Batch, keep: Tensor, places: Tensor) -> Tensor:
    """``_pool`` over ``places`` where the rows hold only the tokens ``keep``, moved together."""

    def move(tensor: Tensor, filler: int) -> Tensor:
        return pad_sequence([row[kept] for row, kept in zip(tensor, keep, strict=True)], batch_first=True, padding_value=filler)

    shown = bool((keep & (batch.input_ids == model.config.image_token_id) & (batch.image_tokens == NO_IMAGE_TOKEN)).any())
    less = replace(
        batch,
        input_ids=move(batch.input_ids, 0),
        attention_mask=move(batch.attention_mask, 0),
        task_ids=move(batch.task_ids, 0),
        labels=move(batch.labels, IGNORE),
        image_tokens=move(batch.image_tokens, NO_IMAGE_TOKEN),
        prompt_dropped=None if batch.prompt_dropped is None else move(batch.prompt_dropped, 0),
        source_tokens=None if batch.source_tokens is None else move(batch.source_tokens, NO_IMAGE_TOKEN),
        pixel_values=batch.pixel_values if shown else None,
        position_ids=None,
    )
    return _pool(_states(model, less), move(places, 0))


def measure(probe_input: ProbeInput, progress: Progress) -> ProbeResult:
    """``alignment``: {"tasks": task key -> {"pairs", "neighbours", "chance", "depths"}}."""
    found = {}
    for task in probe_input.tasks:
        joint = [probe_input.batch(task, BATCH, number, described=True) for number in range(2 * probe_input.batches)]
        try:
            depths, pairs, k = alignment(probe_input.model, task, [batch for part in joint for batch in part])
        except TooFewPairsError:
            continue
        found[task.key] = {
            "pairs": pairs,
            "neighbours": k,
            "chance": chance(pairs, k),
            "depths": [asdict(depth) for depth in depths],
        }
    return (
        {"tasks": found}
        if found
        else Skipped(
            f"fewer than {LEAST_PAIRS} images with words of their own were seen; give more records with --data, or more --batches"
        )
    )


def draw(measured: Any) -> Drawn:
    """Curves over depth."""
    return [("", alignment_curves("alignment", measured["tasks"]))]


def alignment_curves(name: str, tasks: Mapping[str, Mapping[str, Any]]) -> Plot:
    """Mutual kNN over depth, each side alone and both in one sequence; ``tasks`` as ``measure`` gives it."""
    figure, axes = canvas(WIDTH, 3.4, 1, 2, sharey=True)
    panels = {"apart": "Image and words each alone", "together": "In one sequence, as the task runs"}
    for axis, (key, panel) in zip(axes, panels.items(), strict=True):
        for task, found in tasks.items():
            x = [depth["layer"] for depth in found["depths"]]
            values = [depth[key] for depth in found["depths"]]
            axis.plot(x, values, "o-", ms=4.5, color=TASK_COLORS[task], label=TASK_NAMES[task])
            axis.axhline(found["chance"], color=TASK_COLORS[task], lw=1.5, ls=":", label=f"chance, {TASK_NAMES[task]}")
            axis.set_xticks(x)
        name_panel(axis, panel)
        axis.set_xlabel("depth (0: input of the first layer)")
    axes[0].set_ylabel("shared neighbours")
    axes[0].set_ylim(bottom=0)
    legend(figure, axes)
    caption = " ".join(_course(task, found) for task, found in tasks.items())
    return Plot(to_svg(figure, name), f"Alignment of images and words by depth. {caption}", caption)


def _course(task: str, found: Mapping[str, Any]) -> str:
    values = [depth["apart"] for depth in found["depths"]]
    top = int(np.argmax(values))
    return (
        f"{TASK_NAMES[task].capitalize()}, each alone: {decimal(values[0], 2)} at the input, {decimal(values[top], 2)} at its most "
        f"(depth {top}), {decimal(values[-1], 2)} at the output; chance is {decimal(found['chance'], 2)} "
        f"({found['pairs']} pairs, {found['neighbours']} neighbours)."
    )


PROBE: Final = Probe(
    "alignment",
    "Are images and text aligned?",
    measure,
    draw,
    "The share of nearest neighbours that an image and its words have in common, by depth: images as seen in understanding, "
    "as drawn in generation. At the dotted line the two sides know nothing of each other.",
    "Curves that want different things of the same layers: understanding's rising to the output while generation's falls, in "
    "layers that both tasks share. A curve at chance all the way: words and images never meet.",
    "Platonic representation, arXiv 2405.07987; UniFork, arXiv 2506.17202",
)
