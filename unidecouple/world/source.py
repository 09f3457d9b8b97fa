"""The data source of runs on the synthetic benchmark."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from unidecouple.data.sequences import SequenceBuilder
from unidecouple.models.base import UnifiedModel
from unidecouple.models.processing import UnifiedProcessor
from unidecouple.run import RunConfig
from unidecouple.source import DataSource, ProbeData, Progress
from unidecouple.world.batches import WorldBatches, world_batches
from unidecouple.world.new_words import check_words
from unidecouple.world.scene import IMAGE_SIZE
from unidecouple.world.scoring import Scorer
from unidecouple.world.settings import SyntheticData

UNSEEN = SyntheticData(pairs=512, scenes=512, seed=101, cond_dropout_prob=0.0)
"""Data of diagnoses: a seed that no recipe trains on, without prompt dropout."""


class WorldSource:
    """Opens ``SyntheticData``; see ``source.DataSource``."""

    settings = SyntheticData

    def open(
        self,
        run: RunConfig,
        model: UnifiedModel,
        processor: UnifiedProcessor,
        builder: SequenceBuilder,
        cache: Path,
        progress: Progress,
    ) -> WorldBatches:
        """Generate and encode the data of ``run``, unless ``cache`` has them."""
        check_words(processor, _synthetic(run).new_words)
        return world_batches(_synthetic(run), model, builder, run.seed, cache, progress)

    def scorer(
        self, run: RunConfig, model: UnifiedModel, processor: UnifiedProcessor, builder: SequenceBuilder, cache: Path
    ) -> Scorer:
        """Score on validation and test scenes and prompts.

        Raises:
            ValueError: published benchmarks are asked for.
        """
        if run.evaluation.benchmarks:
            raise ValueError("evaluation.benchmarks is for runs on files, but data.kind is world: leave it out")
        return Scorer(run.evaluation, _synthetic(run).evaluation, processor, _synthetic(run).new_words)

    def probe_data(self, run: RunConfig, processor: UnifiedProcessor) -> ProbeData:
        """Scenes and pairs of a seed that no recipe trains on; the described data are captions alone.

        Raises:
            ValueError: the model takes images of another size.
        """
        side = processor.image_processor.size["height"]
        if side != IMAGE_SIZE:
            raise ValueError(
                f"the synthetic benchmark has images of {IMAGE_SIZE} pixels, but this model takes {side}: give your own data with "
                "--data, or a recipe with data: {kind: files, …}"
            )
        text = f"{UNSEEN.pairs} pairs and {UNSEEN.scenes} scenes of the synthetic benchmark that no recipe trains on"
        return ProbeData(RunConfig(data=UNSEEN), RunConfig(data=replace(UNSEEN, turns=0)), text)


def _synthetic(run: RunConfig) -> SyntheticData:
    assert isinstance(run.data, SyntheticData)
    return run.data


SOURCE: Final[DataSource] = WorldSource()
