"""Text to train on: disjoint from what is scored, in the share that is asked for, with a loss on every token."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unidecouple.batch import IGNORE, Task
from unidecouple.convert.load import load
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.eval.language import open_passages
from unidecouple.world.batches import WorldBatches, world_batches
from unidecouple.world.lengths import sample_lengths
from unidecouple.world.settings import SyntheticData
from unidecouple.world.text import training_passages

DATA = SyntheticData(pairs=8, scenes=8, mmu_batch_size=40, t2i_batch_size=0, text_share=0.25)


def eights(text: str) -> set[tuple[str, ...]]:
    """All runs of eight words."""
    words = text.lower().split()
    return {tuple(words[at : at + 8]) for at in range(len(words) - 7)}


def opened(data: SyntheticData, base: Path, cache: Path) -> WorldBatches:
    model, processor = load(str(base))
    return world_batches(data, model, SequenceBuilder(processor), 0, cache, lambda what, done, of: None)


def test_no_passage_is_scored() -> None:
    scored = set().union(*(eights(query.text) for query in open_passages(None).queries))
    trained = set().union(*map(eights, training_passages()))
    assert len(scored) > 4000
    assert len(trained) > 3000
    assert not scored & trained


def test_passages_take_their_share_of_understanding(language_base: Path, small_cache: Path) -> None:
    source = opened(DATA, language_base, small_cache)
    rows = [row for step in range(4) for row in source._samples(step, (Task.MMU,))[0]]  # the samples before padding
    texts = [row for row in rows if not row.pictures]
    assert len(rows) == 160
    assert abs(len(texts) - 40) < 3 * math.sqrt(160 * 0.25 * 0.75)
    decoded = {source.builder.tokenizer.decode(row.input_ids[1:]) for row in texts}
    assert decoded <= set(training_passages())
    assert len(decoded) > 20
    for row in texts:
        assert row.labels == [IGNORE, *row.input_ids[1:]]
        assert set(row.task_ids) == {Task.MMU}


def test_their_loss_is_the_benchmark_s(language_base: Path, small_cache: Path) -> None:
    model, processor = load(str(language_base))
    source = opened(replace(DATA, mmu_batch_size=1, text_share=1.0), language_base, small_cache)
    batch = source.batch(0)
    ids = batch[0].input_ids
    with torch.no_grad():
        logits = model(input_ids=ids, task_ids=torch.full((1, 1), int(Task.MMU))).logits[0, :-1]
        expected = -torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None]).mean()
        torch.testing.assert_close(model(batch=batch).mmu.mean, expected)
    assert sample_lengths(SequenceBuilder(processor), source.data)[1] > 100  # targets per sample: a passage, not an answer


def test_without_text_the_samples_are_as_before(small_base: Path, small_cache: Path) -> None:
    source = opened(replace(DATA, text_share=0.0, mmu_batch_size=4), small_base, small_cache)
    batch = source.batch(0)[0]
    assert batch.pixel_values is not None
    assert len(batch.pixel_values) == 4


def test_a_tokenizer_of_few_words_is_refused(small_base: Path, small_cache: Path) -> None:
    with pytest.raises(ValueError, match=r"text_share is above 0, but the tokenizer does not know \d+% of the words"):
        opened(DATA, small_base, small_cache)


def test_a_short_context_is_refused(language_base: Path, small_cache: Path) -> None:
    model, processor = load(str(language_base))
    model.config.text_config.max_position_embeddings = 100
    with pytest.raises(ValueError, match=r"a passage has \d+ tokens and the model takes 100"):
        world_batches(DATA, model, SequenceBuilder(processor), 0, small_cache, lambda what, done, of: None)
