"""New words: what data use them, what scores them, and a run that learns them."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from small_runs import TWO_STEPS, load_copy
from unidecouple.batch import Task
from unidecouple.convert.load import load
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.methods.stage import Stage
from unidecouple.train.build import add_tokens
from unidecouple.train.train import train
from unidecouple.world.catalog import CLASSES, NEW_WORDS, article
from unidecouple.world.dataset import WorldData, load_world, vocabulary
from unidecouple.world.new_words import (
    KINDS,
    PLENTIFUL,
    RARE,
    WordSamples,
    check_words,
    questions,
    renamed,
    word_prompts,
    word_questions,
    words_of,
)
from unidecouple.world.settings import SyntheticData
from unidecouple.world.source import SOURCE

WORDS = tuple(NEW_WORDS)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> WordSamples:
    world = load_world(WorldData(pairs=300, scenes=150, seed=3), tmp_path_factory.mktemp("world"))
    return WordSamples.of(world, 8, rare_samples=2)


def test_words_are_new_and_need_no_other_article() -> None:
    assert not set(WORDS) & {word.lower() for word in vocabulary()}
    assert set(NEW_WORDS.values()) <= set(CLASSES)
    assert len(set(NEW_WORDS.values())) == len(NEW_WORDS)
    assert {article(word) for pair in NEW_WORDS.items() for word in pair} == {"a"}


def test_each_task_has_half_of_the_words_often() -> None:
    assert words_of(4, Task.MMU) == {PLENTIFUL: ("blick", "dax"), RARE: ("fep", "gazzer")}
    assert words_of(4, Task.T2I) == {PLENTIFUL: ("fep", "gazzer"), RARE: ("blick", "dax")}


def test_only_whole_words_are_renamed() -> None:
    assert renamed("a red cow and two cows", "blick") == "a red blick and two cows"


def test_rare_words_have_few_samples_and_plentiful_all(samples: WordSamples) -> None:
    prompts = samples.world.prompts
    every = [number for number, text in enumerate(prompts) if len(re.findall(r"\bguitar\b", text)) == 1]
    assert samples.pairs["koba"] == every
    assert len(every) > 2
    assert {len(samples.pairs[word]) for word in WORDS[:4]} == {2}
    assert {len(samples.scenes[word]) for word in WORDS[4:]} == {2}
    none = WordSamples.of(samples.world, 8, rare_samples=0)
    assert set(none.pairs) == set(WORDS[4:])
    assert set(none.scenes) == set(WORDS[:4])


def test_pairs_and_conversations_say_the_new_word(samples: WordSamples) -> None:
    rng = np.random.default_rng(0)
    used: Counter[str] = Counter()
    for _ in range(80):
        index, text = samples.pair(rng)
        (word,) = [word for word in WORDS if re.search(rf"\b{word}\b", text)]
        assert text.replace(word, NEW_WORDS[word]) == samples.world.prompts[index]
        index, turns = samples.conversation(rng, 6)
        assert turns[-1].kind == "caption"
        named = [word for word in WORDS if re.search(rf"\b{word}\b", turns[-1].answer)]
        assert len(named) == 1
        scene = samples.world.scenes[index]
        for turn in turns[:-1]:
            (asked,) = [word for word in WORDS if re.search(rf"\b{word}\b", turn.text)]
            assert turn.kind in KINDS
            assert not any(re.search(rf"\b{name}\b", turn.text) for name in NEW_WORDS.values())
            if turn.kind == "pope":
                assert turn.answer == ("yes" if scene.count(NEW_WORDS[asked]) else "no")
                used[turn.answer] += 1
            else:
                assert asked == named[0]
    assert 0.4 < used["yes"] / used.total() < 0.6


def test_questions_are_true_of_their_scenes() -> None:
    scenes, asked = word_questions(WORDS[:2], per_kind=4, seed=1)
    assert Counter(question.kind for _, question in asked) == dict.fromkeys(KINDS, 8)
    assert Counter(question.answer for _, question in asked if question.kind == "pope") == {"yes": 4, "no": 4}
    for at, question in asked:
        (word,) = [word for word in WORDS if re.search(rf"\b{word}\b", question.text)]
        scene = scenes[at]
        if question.kind == "pope":
            assert question.answer == ("yes" if scene.count(NEW_WORDS[word]) else "no")
        else:
            assert question in questions(scene, word, ())


@pytest.mark.parametrize(("split", "least"), [("test", 8), ("val", 1)])
def test_prompts_are_held_out_ones(split: str, least: int) -> None:
    for word in WORDS:
        found = word_prompts((word,), 12, split)
        assert least <= len(found) <= 12
        assert len({prompt.text for prompt in found}) == len(found)
        for prompt in found:
            assert word in prompt.text
            assert NEW_WORDS[word] not in prompt.text
            assert any(clause.name == NEW_WORDS[word] for clause in prompt.include)


def test_added_tokens_are_one_token_each_at_the_mean_of_the_others(small_base: Path) -> None:
    model, processor = load_copy(str(small_base))
    before = model.get_input_embeddings().weight.detach().clone()
    grown = add_tokens(model, processor, [*WORDS[:2], "cow"])
    rows = grown.get_input_embeddings().weight
    assert len(rows) == len(before) + 2 == grown.config.text_config.vocab_size == len(processor.tokenizer)
    assert torch.equal(rows[: len(before)], before)
    torch.testing.assert_close(rows[-1], before.mean(0))
    assert grown.lm_head.weight.shape[0] == len(rows)
    ids = processor.tokenizer("Is there a blick in the image?", add_special_tokens=False).input_ids
    assert ids[3] == len(before)
    assert processor.tokenizer.unk_token_id not in ids
    assert add_tokens(grown, processor, WORDS[:2]) is grown


def test_odd_tokens_and_a_tokenizer_without_the_words_are_refused(small_base: Path) -> None:
    model, processor = load_copy(str(small_base))
    with pytest.raises(ValueError, match="add_tokens: 'two words' is not one word"):
        add_tokens(model, processor, ["two words"])
    with pytest.raises(ValueError, match=r"the tokenizer has no blick, dax: set add_tokens: \[blick, dax\]"):
        check_words(processor, 2)
    with pytest.raises(ValueError, match="new_words=3 must be an even number from 0 to 8"):
        SyntheticData(new_words=3)


def test_data_without_new_words_are_as_before(small_base: Path, tmp_path: Path) -> None:
    """And with them, a share of the samples uses one."""
    model, processor = load(str(small_base))
    plain = SyntheticData(pairs=100, scenes=60, t2i_batch_size=16, mmu_batch_size=16)
    run = replace(TWO_STEPS, data=plain)
    builder = SequenceBuilder(processor)
    same = [
        SOURCE.open(replace(run, data=data), model, processor, builder, tmp_path, lambda *_: None).batch(3)
        for data in (plain, replace(plain, new_word_share=1.0))
    ]
    assert all(torch.equal(one.input_ids, other.input_ids) for one, other in zip(*same, strict=True))
    add_tokens(model, processor, WORDS)
    taught = replace(plain, new_words=2, new_word_share=0.5, rare_samples=1)
    batch = SOURCE.open(replace(run, data=taught), model, processor, builder, tmp_path, lambda *_: None).batch(3)
    new = set(processor.tokenizer.convert_tokens_to_ids(list(WORDS)))
    for part in batch:
        share = sum(bool(new & set(row)) for row in part.input_ids.tolist()) / len(part.input_ids)
        assert 0.1 < share < 0.9


@pytest.mark.slow
def test_a_run_scores_them(small_base: Path, small_cache: Path, tmp_path: Path) -> None:
    data = replace(TWO_STEPS.data, pairs=100, scenes=60, t2i_batch_size=2, mmu_batch_size=2, new_words=2, rare_samples=1)
    run = replace(
        TWO_STEPS,
        model_name_or_path=str(small_base),
        add_tokens=WORDS[:2],
        data=data,
        device="cpu",
        stages=(Stage(train={"embeddings": 1, "text_head": 1}),),
    )
    train(run, tmp_path / "run", small_cache, lambda line: None, threading.Event())
    rows = json.loads((tmp_path / "run" / "scores.json").read_text())["scores"]
    found = {(row["benchmark"], row["metric"]) for row in rows}
    assert {(of, supply) for of in ("vqa", "geneval") for supply in (PLENTIFUL, RARE)} <= found
    model, processor = load(str(tmp_path / "run"))
    assert processor.tokenizer.convert_tokens_to_ids("dax") == model.config.text_config.vocab_size - 1
