"""What a diagnosis looks at: a model, and held-out data of both tasks to show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from unidecouple import config as configs
from unidecouple.batch import JointBatch, Task
from unidecouple.convert.load import checkpoint_folder, load
from unidecouple.data.file_batches import KINDS_OF
from unidecouple.data.formats import Shelf, open_readers
from unidecouple.data.mixture import Files, Source
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.data.world.dataset import Progress
from unidecouple.data.world.scene import IMAGE_SIZE
from unidecouple.models.base import UnifiedModel
from unidecouple.models.processing import UnifiedProcessor
from unidecouple.run import Data, RunConfig
from unidecouple.train.source import BatchSource, open_source

UNSEEN = Data(pairs=512, scenes=512, seed=101, cond_dropout_prob=0.0)
"""The part of the drawn world that diagnoses look at: a seed that no recipe trains on, every prompt shown."""

_CHECKPOINT = "checkpoint-"


@dataclass(frozen=True)
class Subject:
    """A model and data to measure it on.

    Attributes:
        model: in eval mode, on its device.
        source: batches of a task for measurements.
        described: batches whose words describe their picture; ``source`` where nothing better is known.
        step: of training, None where unknown.
        folder: of the run, where it left its logs; None if it is of none.
        batches: how many batches of a task a measurement looks at.
    """

    model: UnifiedModel
    source: BatchSource
    described: BatchSource
    step: int | None = None
    folder: Path | None = None
    batches: int = 8

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks that there is data of."""
        return self.source.measurable

    def batch(self, task: Task, size: int, number: int, described: bool = False) -> JointBatch:
        """Batch ``number`` of ``task`` on the model's device."""
        source = self.described if described else self.source
        return tuple(batch.to(self.model.device) for batch in source.task_batch(task, size, number))

    def distinct_batch(self, task: Task, size: int, number: int) -> JointBatch:
        """Batch ``number`` of ``task`` without the records of other numbers, on the model's device."""
        return tuple(batch.to(self.model.device) for batch in self.source.distinct_batch(task, size, number))


@dataclass(frozen=True)
class Opened:
    """A subject, and in words what was opened."""

    subject: Subject
    checkpoint: Path
    data: str


def open_subject(
    checkpoint: str,
    recipe: RunConfig | None,
    data: Sequence[Path],
    batches: int,
    device: torch.device,
    cache: Path,
    progress: Progress,
) -> Opened:
    """Load ``checkpoint`` (see ``checkpoint_folder``) and open data to show it.

    The data are ``data``; without it the files that ``recipe`` is scored on; without that those of the run that the checkpoint
    is of; and where none of them has files, the drawn world.

    Raises:
        ValueError: the checkpoint or the data cannot be read, or the drawn world does not fit the model.
    """
    if batches < 1:
        raise ValueError(f"--batches {batches} must be 1 or more")
    folder = checkpoint_folder(checkpoint)
    home = next((place for place in (folder, folder.parent) if (place / "run.yaml").is_file()), None)
    if recipe is None and home is not None:
        recipe = configs.load(RunConfig, [home / "run.yaml"])
    files = _files(data, cache) if data else recipe.files if recipe else None
    model, processor = load(checkpoint)
    model.to(device)
    builder = SequenceBuilder(processor)
    step = int(folder.name.removeprefix(_CHECKPOINT)) if folder.name.startswith(_CHECKPOINT) else None

    def opened(run: RunConfig) -> BatchSource:
        return open_source(run, model, processor, builder, cache, progress)

    if files is None:
        _check_fit(processor)
        source = opened(RunConfig(data=UNSEEN))
        described = opened(RunConfig(data=replace(UNSEEN, turns=0)))  # captions alone
        said = f"{UNSEEN.pairs} pairs and {UNSEEN.scenes} scenes of the drawn world that no recipe trains on"
    else:
        said = "held-out files" if files.validation else "the files given" if data else "training files, since none are held out"
        shown = replace(files, sources=files.validation or files.sources, validation=(), cond_dropout_prob=0.0, pack=False)
        source = described = opened(RunConfig(files=shown))
        said += ": " + ", ".join(str(entry.path) for entry in shown.sources)
    return Opened(Subject(model, source, described, step, home, batches), folder, said)


def _files(data: Sequence[Path], cache: Path) -> Files:
    """All records of ``data``, of the tasks that they have."""
    readers = [reader for path in data for reader in open_readers(path, None, None, cache / "files")]
    understood, drawn = (len(Shelf(readers, kinds)) for kinds in KINDS_OF.values())
    if not understood + drawn:
        raise ValueError(f"--data {' '.join(map(str, data))} holds no record that can be used: see `unidecouple data check`")
    return Files(tuple(Source(path) for path in data), mmu_batch_size=min(understood, 1), t2i_batch_size=min(drawn, 1))


def _check_fit(processor: UnifiedProcessor) -> None:
    side = processor.image_processor.size["height"]
    if side != IMAGE_SIZE:
        raise ValueError(
            f"the drawn world has pictures of {IMAGE_SIZE} pixels, but this model looks at {side}: give your own data with --data, "
            "or a recipe with files"
        )
