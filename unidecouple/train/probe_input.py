"""Inputs of a diagnosis: a model, and held-out data of both tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from unidecouple import config as configs
from unidecouple.convert.load import checkpoint_folder, load
from unidecouple.data.file_batches import KINDS_OF
from unidecouple.data.formats import RecordIndex, open_readers
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.data.settings import Files, Source
from unidecouple.diagnose.probe import ProbeInput
from unidecouple.run import RunConfig
from unidecouple.source import BatchSource, Progress, data_source
from unidecouple.train.file_source import named
from unidecouple.train.routing_log import read_routing_log

_CHECKPOINT = "checkpoint-"


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A probe's input, and a description of its data for the report."""

    probe_input: ProbeInput
    checkpoint: Path
    data: str


def open_probe_input(
    checkpoint: str,
    recipe: RunConfig | None,
    data: Sequence[Path],
    batches: int,
    device: torch.device,
    cache: Path,
    progress: Progress,
) -> OpenedCheckpoint:
    """Load ``checkpoint`` (see ``checkpoint_folder``) and open data for probes.

    The data are ``data``; by default the files that ``recipe`` is scored on, then those of the checkpoint's run, then synthetic
    data that no recipe trains on.

    Raises:
        ValueError: the checkpoint or the data cannot be read, or the data do not fit the model.
    """
    if batches < 1:
        raise ValueError(f"--batches {batches} must be 1 or more")
    folder = checkpoint_folder(checkpoint)
    home = next((place for place in (folder, folder.parent) if (place / "run.yaml").is_file()), None)
    if recipe is None and home is not None:
        recipe = configs.load(RunConfig, [home / "run.yaml"])
    files = files_of(data, cache) if data else None
    run = RunConfig(data=files) if files else RunConfig(data=recipe.data) if recipe else RunConfig()
    model, processor = load(checkpoint)
    model.to(device)
    builder = SequenceBuilder(processor)
    step = int(folder.name.removeprefix(_CHECKPOINT)) if folder.name.startswith(_CHECKPOINT) else None

    def opened(run: RunConfig) -> BatchSource:
        return data_source(run).open(run, model, processor, builder, cache, progress)

    probed = data_source(run).probe_data(run, processor)
    source = opened(probed.run)
    described = source if probed.described is probed.run else opened(probed.described)
    description = f"the files given: {named(files)}" if files else probed.text
    return OpenedCheckpoint(
        ProbeInput(model, source, described, step, batches, read_routing_log(home) if home else ()), folder, description
    )


def files_of(data: Sequence[Path], cache: Path) -> Files:
    """All records of ``data``, of the tasks that they have."""
    readers = [reader for path in data for reader in open_readers(path, None, None, cache / "files")]
    understood, drawn = (len(RecordIndex(readers, kinds)) for kinds in KINDS_OF.values())
    if not understood + drawn:
        raise ValueError(f"--data {' '.join(map(str, data))} holds no record that can be used: see `unidecouple data check`")
    return Files(tuple(Source(path) for path in data), mmu_batch_size=min(understood, 1), t2i_batch_size=min(drawn, 1))
