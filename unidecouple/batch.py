"""The vocabulary of the package: tasks, and the batches that carry them. Imports nothing of ours."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
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


class Modality(enum.IntEnum):
    """The modality of a token, whatever its task."""

    TEXT = 0
    """Text, including the markers around images."""
    IMAGE_IN = 1
    """Part of an image to be understood."""
    IMAGE_OUT = 2
    """A discrete image token to be generated."""


@dataclass(frozen=True)
class Batch:
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
    """

    input_ids: Tensor
    attention_mask: Tensor
    task_ids: Tensor
    labels: Tensor
    image_tokens: Tensor
    pixel_values: Tensor | None = None
    position_ids: Tensor | None = None
    prompt_dropped: Tensor | None = None

    def __post_init__(self) -> None:
        shapes = {name: tuple(part.shape) for name, part in self._parts().items() if name != "pixel_values"}
        if len(set(shapes.values())) != 1:
            raise ValueError(f"all parts of a batch must have one (batch, length) shape, but got {shapes}")

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.attention_mask.sum())

    def to(self, device: torch.device | str) -> Batch:
        """The batch on ``device``."""
        return Batch(**{name: part.to(device) for name, part in self._parts().items()})

    def _parts(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def num_targets(self) -> tuple[int, int]:
        """Tokens with a loss, per task: text targets and image tokens. The first of a row has no token before it."""
        return int((self.labels[:, 1:] != IGNORE).sum()), int((self.image_tokens[:, 1:] != NO_IMAGE_TOKEN).sum())


JointBatch = tuple[Batch, ...]
"""The batches of one training step, usually one per task, so that neither is padded to the other's length."""


def count_tokens(batches: Sequence[Batch]) -> Tensor:
    """Count the tokens of each task that are not padding: (tasks,) int64."""
    return torch.stack([torch.bincount(batch.task_ids[batch.attention_mask], minlength=len(Task)) for batch in batches]).sum(0)


def count_targets(batches: Sequence[Batch]) -> Tensor:
    """Count the targets of each task: (tasks,) int64."""
    return torch.tensor([batch.num_targets for batch in batches], device=batches[0].input_ids.device).sum(0)
