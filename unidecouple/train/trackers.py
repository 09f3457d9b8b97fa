"""Where measurements go besides ``metrics.jsonl``: TensorBoard, and Weights & Biases when asked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """Takes numbers by name at a step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show ``values`` at ``step``."""

    def close(self) -> None:
        """Flush buffered values."""


class TensorBoard:
    """Event files in ``folder``/tensorboard; those past ``start`` are hidden, since their steps run again."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add one curve per name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases named as the run's folder; a resumed run continues it."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError("report_to asks for wandb, which is not installed: pip install wandb, or leave it out") from error
        self._run = wandb.init(
            project="unidecouple", name=folder.name, dir=str(folder), id=folder.name, resume="allow", config=config
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add one curve per name."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """End the run there."""
        self._run.finish()


@contextlib.contextmanager
def tracking(report_to: Sequence[str], folder: Path, start: int, config: Mapping[str, Any]) -> Iterator[list[Tracker]]:
    """The trackers that a run asks for by name, open for the length of the block.

    Args:
        report_to: of "tensorboard", "wandb".
        folder: of the run.
        start: steps done before, when a run resumes.
        config: of the run, for trackers that show it.

    Raises:
        ValueError: one is not installed.
    """
    trackers: list[Tracker] = []
    try:
        if "tensorboard" in report_to:
            trackers.append(TensorBoard(folder, start))
        if "wandb" in report_to:
            trackers.append(WeightsAndBiases(folder, config))
        yield trackers
    finally:
        for tracker in trackers:
            tracker.close()
