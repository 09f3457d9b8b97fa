"""Held-out samples of both tasks, and each sample's loss under a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from unidecouple.batch import JointBatch, Task
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.models.base import UnifiedModel
from unidecouple.models.processing import UnifiedProcessor
from unidecouple.run import RunConfig
from unidecouple.source import Progress, data_source
from unidecouple.train.probe_input import files_of

SYNTHETIC = "synthetic"
"""In place of files: the synthetic benchmark's data that no recipe trains on."""


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


def open_held_out(
    data: Sequence[str],
    model: UnifiedModel,
    processor: UnifiedProcessor | None,
    most: int,
    cache: Path,
    progress: Progress,
) -> HeldOut:
    """Open ``data``, files in any format or ``SYNTHETIC``, for at most ``most`` samples per task; no record comes twice.

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
        count = source.distinct_samples(task, most)
        if count < 2:
            raise ValueError(f"the data have {count} sample(s) of {task.key}: a comparison needs at least 2")
        device = model.device
        samples[task] = [tuple(part.to(device) for part in source.distinct_batch(task, 1, key)) for key in range(count)]
    return HeldOut(samples, text)


def mean(values: Sequence[float]) -> float:
    """Plain mean."""
    return sum(values) / len(values)
