"""Lengths of samples, measured on scenes and prompts: what ``unidecouple plan`` counts a step with."""

from __future__ import annotations

from statistics import fmean

import numpy as np

from unidecouple.batch import IGNORE, Task
from unidecouple.data.sequences import Sample, SequenceBuilder
from unidecouple.data.settings import DataSettings
from unidecouple.source import SampleLengths
from unidecouple.world.edit_questions import training_question
from unidecouple.world.edits import training_edit
from unidecouple.world.prompts import training_pair
from unidecouple.world.questions import conversation
from unidecouple.world.scene import IMAGE_SIZE, random_scene
from unidecouple.world.settings import SyntheticData
from unidecouple.world.text import passage_sample, training_passages

SAMPLED_BATCHES = 16
_QUESTIONS = 16
"""Different questions after an edit; their lengths hardly differ."""


def sample_lengths(builder: SequenceBuilder, settings: DataSettings) -> SampleLengths:
    """Measure samples as training draws them, but for a curriculum, new words and dropped prompts.

    Data of another kind are measured as synthetic data of the same batch sizes.
    """
    data = SyntheticData(mmu_batch_size=settings.mmu_batch_size, t2i_batch_size=settings.t2i_batch_size)
    if isinstance(settings, SyntheticData):
        data = settings
    length, answers, shown = _conversations(builder, data)
    prompt, sources = _prompts(builder, data)
    return SampleLengths(length, answers, prompt, shown, sources)


def _conversations(builder: SequenceBuilder, data: SyntheticData) -> tuple[int, float, float]:
    """Mean padded length of a batch, mean answer tokens and mean images per sample."""
    rng, blank = np.random.default_rng(data.seed), np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    others = np.random.default_rng([data.seed, 1])
    questions = [training_question(others).question for _ in range(_QUESTIONS if data.edit_question_fraction else 0)]

    def sample() -> Sample:
        if data.text_share and rng.random() < data.text_share:
            return passage_sample(builder, str(rng.choice(training_passages())))
        if questions and rng.random() < data.edit_question_fraction:
            asked = questions[int(rng.integers(len(questions)))]
            shown = [blank] * int(rng.integers(1, 3))
            return builder.conversation([("user", [*shown, asked.text]), ("assistant", [asked.answer])], Task.MMU)
        scene = random_scene(rng)
        return builder.understanding(blank, conversation(scene, rng, data.turns))

    batches = [[sample() for _ in range(max(1, data.mmu_batch_size))] for _ in range(SAMPLED_BATCHES)]
    length = fmean(max(len(row.input_ids) for row in batch) for batch in batches)
    every = [row for batch in batches for row in batch]
    return (
        round(length),
        fmean(sum(label != IGNORE for label in row.labels) for row in every),
        fmean(len(r.pictures) for r in every),
    )


def _prompts(builder: SequenceBuilder, data: SyntheticData) -> tuple[int, float]:
    """Mean padded length of a batch of prompts, and mean source images per prompt."""
    rng = np.random.default_rng(data.seed)

    def prompt() -> tuple[list[int], int]:
        if data.edit_fraction and rng.random() < data.edit_fraction:
            return builder.generation_prompt(training_edit(rng).text, images=1), 1
        return builder.generation_prompt(training_pair(rng)[0].text), 0

    batches = [[prompt() for _ in range(max(1, data.t2i_batch_size))] for _ in range(SAMPLED_BATCHES)]
    length = fmean(max(len(ids) for ids, _ in batch) for batch in batches)
    return round(length), fmean(count for batch in batches for _, count in batch)
