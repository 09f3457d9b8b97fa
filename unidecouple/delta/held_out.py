"""Held-out samples of both tasks, and each sample's loss under a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from unidecouple.batch import LANGUAGE, JointBatch, Task
from unidecouple.data.file_batches import FileBatches
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.models.base import UnifiedModel
from unidecouple.models.processing import UnifiedProcessor
from unidecouple.run import RunConfig
from unidecouple.source import BatchSource, Progress, data_source
from unidecouple.train.probe_input import files_of

SYNTHETIC = "synthetic"
"""In place of files: the synthetic benchmark's data that no recipe trains on."""
_SEARCHED: Final = 32
"""Records that are looked at per sample, where text-only ones are rare or most."""


@dataclass(frozen=True)
class HeldOut:
    """Samples, each a batch of its own.

    Attributes:
        samples: of each task that there is data of.
        text: in words, what they are.
    """

    samples: Mapping[Task, Sequence[JointBatch]]
    text: str

    @torch.no_grad()
    def losses(self, model: UnifiedModel) -> dict[Task, list[float]]:
        """The loss of every sample."""
        return {
            task: [float(model(batch=batch).loss(task)) for batch in batches] for task, batches in self.samples.items() if batches
        }

    def by_key(self, task: Task, losses: Sequence[float]) -> dict[str, list[float]]:
        """``losses`` of ``task`` by what is scored; text-only samples are language, except a single one among others."""
        text = [all(part.pixel_values is None for part in batch) for batch in self.samples[task]]
        if task is not Task.MMU or sum(text) < 2:
            return {task.key: list(losses)}
        kinds = {task.key: [loss for loss, one in zip(losses, text, strict=True) if not one]}
        kinds[LANGUAGE] = [loss for loss, one in zip(losses, text, strict=True) if one]
        if len(kinds[task.key]) == 1:
            raise ValueError(f"{self.text} have 1 sample about an image beside text alone: a comparison needs at least 2, or none")
        return {key: some for key, some in kinds.items() if some}


def computed_by(key: str) -> Task | None:
    """Return the task whose weights compute what a metric with task ``key`` scores; None for a metric of no task."""
    if key == LANGUAGE:
        return Task.MMU
    return next((task for task in Task if task.key == key), None)


def open_held_out(
    data: Sequence[str],
    model: UnifiedModel,
    processor: UnifiedProcessor | None,
    most: int,
    cache: Path,
    progress: Progress,
) -> HeldOut:
    """Open ``data``, files in any format or ``SYNTHETIC``, for at most ``most`` samples per task; no record comes twice.

    Text-only records count separately: there are as many of them at most beside those about images.

    Raises:
        ValueError: there is no processor, no record that can be used, or one sample of a task, which has no spread.
    """
    if processor is None:
        raise ValueError("the base has no tokenizer.json, so no data can be read: copy the tokenizer's files to it")
    given = list(data) != [SYNTHETIC]
    probed = RunConfig(data=files_of([Path(entry) for entry in data], cache)) if given else RunConfig()
    found = data_source(probed).probe_data(probed, processor)  # no prompt is dropped
    run, text = found.run, f"the files given: {', '.join(data)}" if given else found.text
    source = data_source(run).open(run, model, processor, SequenceBuilder(processor), cache, progress)
    samples = {}
    for task in source.measurable:
        keys = _keys(source, task, most)
        if len(keys) < 2:
            raise ValueError(f"the data have {len(keys)} sample(s) of {task.key}: a comparison needs at least 2")
        device = model.device
        samples[task] = [tuple(part.to(device) for part in source.distinct_batch(task, 1, key)) for key in keys]
    return HeldOut(samples, text)


def _keys(source: BatchSource, task: Task, most: int) -> list[int]:
    """Keys of at most ``most`` distinct samples with images and as many of text alone, where the source has both."""
    if not isinstance(source, FileBatches):
        return list(range(source.distinct_samples(task, most)))
    kept: dict[bool, list[int]] = {True: [], False: []}
    for key in range(source.distinct_samples(task, _SEARCHED * most)):
        mine = kept[source.is_text(task, key)]
        if len(mine) < most:
            mine.append(key)
    return sorted(kept[True] + kept[False])


def mean(values: Sequence[float]) -> float:
    """Plain mean."""
    return sum(values) / len(values)
