"""The vocabulary of the package: tasks, and the batches that carry them. Imports nothing of ours."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
"""Label of a position without a loss."""

NO_IMAGE_TOKEN = -1
"""Entry of ``Batch.image_tokens`` at positions that hold no image to be generated."""


class Task(enum.IntEnum):
    """The task that a token belongs to. The value is the index of the task's expert group.

    The BOS, which precedes any sign of the task, and plain text count as ``MMU``. So where weights are split by task, T2I's loss
    reaches MMU's weights in one way: its tokens attend to the key and value of the BOS. MMU's loss never reaches T2I's weights.
    """

    MMU = 0
    T2I = 1

    @property
    def key(self) -> str:
        """Name in configurations, logs and results: "mmu" or "t2i"."""
        return self.name.lower()


TASK_KEYS: tuple[str, ...] = tuple(task.key for task in Task)

LANGUAGE = "language"
"""Key of what is scored as a third task: text without images. Its tokens are ``Task.MMU``'s."""


class Modality(enum.IntEnum):
    """The modality of a token, whatever its task."""

    TEXT = 0
    """Text, including the markers around images."""
    IMAGE_IN = 1
    """Part of an image to be understood."""
    IMAGE_OUT = 2
    """A discrete image token: to be generated, or of a source image (with BAGEL's rule for VAE tokens, arXiv 2505.14683)."""


@dataclass(frozen=True)
class TokenPlaces:
    """Where the tokens of a batch stand that losses and measurements read; a place is row * T + column.

    They are found once per batch, before it is moved to a GPU: every selection by a boolean mask there makes the host wait.

    Attributes:
        real: (N,) int64 places of tokens that are not padding, ascending.
        before_text, text: (M,) int64 places of the tokens that predict a text target, and those targets.
        before_image, image: the same of image tokens to be generated.
        num_tokens: real tokens per task.
        lengths: tokens of each sequence, row by row, where rows are packed; each token of padding is a sequence. Else empty.
    """

    real: Tensor
    before_text: Tensor
    text: Tensor
    before_image: Tensor
    image: Tensor
    num_tokens: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, batch: Batch) -> TokenPlaces:
        """Of ``batch``; on a GPU this waits for the device."""
        real = batch.attention_mask.flatten().nonzero().squeeze(1)
        texts, images = _targets(batch.labels, IGNORE), _targets(batch.image_tokens, NO_IMAGE_TOKEN)
        counts = torch.bincount(batch.task_ids.flatten().index_select(0, real), minlength=len(Task)).tolist()
        lengths: list[int] = []
        if batch.position_ids is not None:
            starts = batch.position_ids == 0
            starts[:, 0] = True
            begins = [*starts.flatten().nonzero().squeeze(1).tolist(), starts.numel()]
            lengths = [end - begin for begin, end in itertools.pairwise(begins)]
        return cls(real, *texts, *images, tuple(counts), tuple(lengths))

    def to(self, device: torch.device | str) -> TokenPlaces:
        """The places on ``device``."""
        return replace(
            self,
            real=to_device(self.real, device),
            before_text=to_device(self.before_text, device),
            text=to_device(self.text, device),
            before_image=to_device(self.before_image, device),
            image=to_device(self.image, device),
        )


class _KeepsPlaces:
    """Keeps a batch's places beside its fields, which copies and ``vars`` leave out."""

    __slots__ = ("_places",)

    _places: TokenPlaces

    def __getstate__(self) -> dict[str, Any]:
        return vars(self)


@dataclass(frozen=True)
class Batch(_KeepsPlaces):
    """Token sequences, right-padded to one length. Rows may hold either task, or both.

    Attributes:
        input_ids: (B, T) int64 text tokens; the image placeholder where an image to be understood goes; any id where
            ``image_tokens`` has a token.
        attention_mask: (B, T) bool, False on padding.
        task_ids: (B, T) int64, the ``Task`` of every token.
        labels: (B, T) int64 text targets *at the position of the token itself* (shifting is the loss's work), else ``IGNORE``.
        image_tokens: (B, T) int64 discrete image tokens to be generated, else ``NO_IMAGE_TOKEN``. They are their own targets.
        pixel_values: (N, 3, H, W) float images to be understood, in the order of their placeholders, or None.
        position_ids: (B, T) int64 position of each token in its sequence, where rows hold several sequences
            (``data/packing.py``); None where each row is one sequence.
        prompt_dropped: (B, T) bool, True where a pad replaces a token of a prompt dropped for classifier-free guidance. None: no
            prompt was dropped.
        source_tokens: (B, T) int64 image tokens of source images, which an image is generated from; else ``NO_IMAGE_TOKEN``. They
            are embedded as those to be generated, and have no loss. None: no sample has a source image.
    """

    input_ids: Tensor
    attention_mask: Tensor
    task_ids: Tensor
    labels: Tensor
    image_tokens: Tensor
    pixel_values: Tensor | None = None
    position_ids: Tensor | None = None
    prompt_dropped: Tensor | None = None
    source_tokens: Tensor | None = None

    def __post_init__(self) -> None:
        shapes = {name: tuple(part.shape) for name, part in self._parts().items() if name != "pixel_values"}
        if len(set(shapes.values())) != 1:
            raise ValueError(f"all parts of a batch must have one (batch, length) shape, but got {shapes}")

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return sum(self.places.num_tokens)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on ``device``."""
        moved = Batch(**{name: to_device(part, device) for name, part in self._parts().items()})
        object.__setattr__(moved, "_places", self.places.to(device))
        return moved

    @property
    def embedded_image_tokens(self) -> Tensor:
        """(B, T) int64 image tokens, to be generated or of source images, else ``NO_IMAGE_TOKEN``."""
        return self.image_tokens if self.source_tokens is None else torch.maximum(self.image_tokens, self.source_tokens)

    @property
    def places(self) -> TokenPlaces:
        """See ``TokenPlaces``; found when they are first asked for."""
        if not hasattr(self, "_places"):
            object.__setattr__(self, "_places", TokenPlaces.of(self))
        return self._places

    def _parts(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def num_targets(self) -> tuple[int, int]:
        """Tokens with a loss, per task: text targets and image tokens. The first of a row has no token before it."""
        return len(self.places.text), len(self.places.image)


JointBatch = tuple[Batch, ...]
"""The batches of one training step, usually one per task, so that neither is padded to the other's length."""


def count_tokens(batches: Sequence[Batch]) -> Tensor:
    """Count the tokens of each task that are not padding: (tasks,) int64."""
    return _sums([batch.places.num_tokens for batch in batches], batches[0].input_ids.device)


def count_targets(batches: Sequence[Batch]) -> Tensor:
    """Count the targets of each task: (tasks,) int64."""
    return _sums([batch.num_targets for batch in batches], batches[0].input_ids.device)


def membership(ids: Tensor, count: int) -> Tensor:
    """Return whether each id is 0, 1, ... ``count`` - 1: (...) int64 -> (..., count) bool, never waiting as ``F.one_hot`` may."""
    return ids.unsqueeze(-1) == torch.arange(count, device=ids.device)


def sum_by_task(values: Tensor, tasks: Tensor) -> Tensor:
    """Sums of (N,) values by task, (tasks,); not by scattered additions, which differ from run to run on a GPU."""
    return (values.unsqueeze(-1) * membership(tasks, len(Task))).sum(0)


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """``tensor`` on ``device``; to a GPU by way of pinned memory, so that the host need not wait for the copy."""
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _targets(tokens: Tensor, ignored: int) -> tuple[Tensor, Tensor]:
    """Places of the tokens before each of ``tokens`` (B, T) that is a target, and those; the first of a row has none before it."""
    before = F.pad(tokens[:, 1:] != ignored, (0, 1)).flatten().nonzero().squeeze(1)
    return before, tokens.flatten().index_select(0, before + 1)


def _sums(counts: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
    """Add counts per task that the host knows: (tasks,) int64 on ``device``."""
    return to_device(torch.tensor([sum(each) for each in zip(*counts, strict=True)]), device)
