"""Where measurements go besides ``metrics.jsonl``: TensorBoard, Weights & Biases, and trackers of the user's own.

A tracker is a class without arguments and three methods, named in ``report_to`` by its line in ``plugins.TRACKERS`` or by
"package.module:Class".
"""

from __future__ import annotations

import contextlib
import os
import pkgutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from unidecouple import plugins


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker may show of a run.

    Attributes:
        folder: of the run.
        step: steps done before, when a run resumes.
        config: the configuration, as JSON's own types.
    """

    folder: Path
    step: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)


class Tracker(Protocol):
    """Takes numbers by name at a step. Only the first process of a run has trackers."""

    def start(self, run: TrackedRun) -> None:
        """Begin; steps after ``run.step`` run again and replace what was logged of them."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show ``values`` at ``step``."""

    def finish(self) -> None:
        """End, whether the run has finished, failed or was interrupted; not called if ``start`` raised."""


class TensorBoard:
    """Event files in the run's folder "tensorboard"."""

    def start(self, run: TrackedRun) -> None:
        """Open the files; steps that run again are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add one curve per name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        """Flush."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases named as the run's folder; a resumed run continues it. WANDB_PROJECT names the project."""

    def start(self, run: TrackedRun) -> None:
        """Begin or continue the run.

        Raises:
            ValueError: wandb is not installed.
        """
        try:
            import wandb
        except ImportError as error:
            raise ValueError("report_to asks for wandb, which is not installed: pip install wandb, or leave it out") from error
        name, project = run.folder.name, os.environ.get("WANDB_PROJECT", "unidecouple")
        self._run = wandb.init(project=project, name=name, dir=str(run.folder), id=name, resume="allow", config=dict(run.config))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add one curve per name."""
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        """End the run there."""
        self._run.finish()


@contextlib.contextmanager
def tracking(report_to: Sequence[str], run: TrackedRun) -> Iterator[list[Tracker]]:
    """Start the trackers that ``report_to`` names for the length of the block.

    Raises:
        ValueError: one is not installed, or cannot be imported.
    """
    with contextlib.ExitStack() as stack:
        trackers: list[Tracker] = []
        for tracker in [_tracker(name) for name in report_to]:
            tracker.start(run)
            stack.callback(tracker.finish)
            trackers.append(tracker)
        yield trackers


def _tracker(name: str) -> Tracker:
    tracker: Tracker
    if name in plugins.TRACKERS:
        tracker = plugins.found(plugins.TRACKERS, name)()
        return tracker
    if (here := str(Path.cwd())) not in sys.path:  # as `python -m` has it; a console script does not
        sys.path.append(here)
    try:
        tracker = pkgutil.resolve_name(name)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"report_to names {name!r}, which cannot be imported: {error}") from error
    return tracker
