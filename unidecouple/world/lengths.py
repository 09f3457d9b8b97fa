"""Lengths of samples, measured on scenes and prompts: what ``unidecouple plan`` counts a step with."""

from __future__ import annotations

from statistics import fmean

import numpy as np

from unidecouple.batch import IGNORE
from unidecouple.data.sequences import Sample, SequenceBuilder
from unidecouple.data.settings import DataSettings
from unidecouple.world.prompts import training_pair
from unidecouple.world.questions import conversation
from unidecouple.world.scene import IMAGE_SIZE, random_scene
from unidecouple.world.settings import SyntheticData
from unidecouple.world.text import passage_sample, training_passages

SAMPLED_BATCHES = 16


def sample_lengths(builder: SequenceBuilder, settings: DataSettings) -> tuple[int, float, int]:
    """Return the mean padded length of a batch of conversations, mean answer tokens per conversation, mean padded prompt length.

    Data of another kind are measured as synthetic data of the same batch sizes. A curriculum is not measured.
    """
    data = SyntheticData(mmu_batch_size=settings.mmu_batch_size, t2i_batch_size=settings.t2i_batch_size)
    if isinstance(settings, SyntheticData):
        data = settings
    length, answers = _conversations(builder, data)
    return length, answers, _prompts(builder, data)


def _conversations(builder: SequenceBuilder, data: SyntheticData) -> tuple[int, float]:
    rng, blank = np.random.default_rng(data.seed), np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)

    def sample() -> Sample:
        if data.text_share and rng.random() < data.text_share:
            return passage_sample(builder, str(rng.choice(training_passages())))
        scene = random_scene(rng)
        return builder.understanding(blank, conversation(scene, rng, data.turns))

    batches = [[sample() for _ in range(max(1, data.mmu_batch_size))] for _ in range(SAMPLED_BATCHES)]
    length = fmean(max(len(row.input_ids) for row in batch) for batch in batches)
    return round(length), fmean(sum(label != IGNORE for label in row.labels) for batch in batches for row in batch)


def _prompts(builder: SequenceBuilder, data: SyntheticData) -> int:
    rng = np.random.default_rng(data.seed)
    batches = [
        [builder.generation_prompt(training_pair(rng)[0].text) for _ in range(max(1, data.t2i_batch_size))]
        for _ in range(SAMPLED_BATCHES)
    ]
    return round(fmean(max(len(row) for row in batch) for batch in batches))
