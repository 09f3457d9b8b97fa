"""The data source of runs on your own files (``data: {kind: files}``)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from unidecouple.data.file_batches import FileBatches
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.data.settings import Files
from unidecouple.data.split import warn_of_training_files
from unidecouple.models.base import UnifiedModel
from unidecouple.models.processing import UnifiedProcessor
from unidecouple.run import RunConfig
from unidecouple.source import DataSource, ProbeData, Progress
from unidecouple.train.validation_loss import ValidationLoss, open_validation


class FileSource:
    """Opens ``Files``; see ``source.DataSource``."""

    settings = Files

    def open(
        self,
        run: RunConfig,
        model: UnifiedModel,
        processor: UnifiedProcessor,
        builder: SequenceBuilder,
        cache: Path,
        progress: Progress,
    ) -> FileBatches:
        """Open the files that ``run`` trains on.

        Raises:
            ValueError: files are missing, of no known format, or without records of a task.
            BadDataError: too many records cannot be parsed.
        """
        files, longest = _files(run), model.config.text_config.max_position_embeddings
        if files.validation:
            warn_of_training_files(files, cache / "files")
        if not files.pack:  # packed rows may be longer than the model takes: positions start again with each sequence
            files = replace(files, max_length=min(files.max_length, longest))
        return FileBatches(files, processor, builder, run.seed, model.model.vqmodel, cache / "files")

    def scorer(
        self, run: RunConfig, model: UnifiedModel, processor: UnifiedProcessor, builder: SequenceBuilder, cache: Path
    ) -> ValidationLoss:
        """Score on held-out files and published benchmarks; raises as ``open_validation``."""
        return open_validation(_files(run), run.evaluation, processor, builder, model.model.vqmodel, cache)

    def probe_data(self, run: RunConfig, processor: UnifiedProcessor) -> ProbeData:
        """The held-out files, or the training files where none are held out."""
        files = _files(run)
        shown = files.held_out or replace(files, validation=(), cond_dropout_prob=0.0, pack=False)
        kind = "held-out files" if files.held_out else "training files, since none are held out"
        probed = RunConfig(data=shown)
        return ProbeData(probed, probed, f"{kind}: {named(shown)}")


def named(files: Files) -> str:
    """Return the paths of the sources of ``files``, in words."""
    return ", ".join(str(entry.path) for entry in files.sources)


def _files(run: RunConfig) -> Files:
    assert isinstance(run.data, Files)
    return run.data


SOURCE: Final[DataSource] = FileSource()
