"""Answers by the engine: the plain loop's, whoever comes and goes meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decoder_kinds import KINDS, every_kind, refusal
from tiny_emu3 import SIZE
from unidecouple.batch import Task
from unidecouple.convert.load import load
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.generate.answer_generator import AnswerGenerator, generate_answers
from unidecouple.generate.jobs import AnswerJob
from unidecouple.generate.sampling import SamplingParams
from unidecouple.generate.text import answer
from unidecouple.models.janus import UniJanusForConditionalGeneration

MakeModel = Callable[..., UniJanusForConditionalGeneration]

QUESTIONS = ["Is there a cow in the image?", "What?", "How many red pigs are there in the image?", "Is there a cow in the image?"]


def requests_of(builder: SequenceBuilder, pictures: np.ndarray, **settings: Any) -> list[AnswerJob]:
    return [
        AnswerJob(builder.understanding_prompt(question), (picture,), 8, **settings)
        for question, picture in zip(QUESTIONS, pictures, strict=True)
    ]


@every_kind
def test_greedy_answers_are_the_plain_loops(
    make_model: MakeModel, builder: SequenceBuilder, pictures: np.ndarray, kind: dict[str, Any]
) -> None:
    model = make_model(**kind)
    expected = answer(model, builder, list(pictures), QUESTIONS, 8, routing="label")
    if refused := refusal(kind):
        with pytest.raises(ValueError, match=refused):
            AnswerGenerator(model, builder)
        return
    assert (
        generate_answers(AnswerGenerator(model, builder, max_batch_size=3, max_length=96), requests_of(builder, pictures))
        == expected
    )
    assert len(set(expected)) > 1


def test_emu3s_answers_are_the_plain_loops(emu3_base: Path) -> None:
    model, processor = load(str(emu3_base))
    builder = SequenceBuilder(processor)
    pictures = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    expected = answer(model, builder, list(pictures), QUESTIONS, 8)
    assert generate_answers(AnswerGenerator(model, builder, max_length=128), requests_of(builder, pictures)) == expected


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[4]], ids=str)
def test_neighbours_do_not_notice_who_comes_and_goes(
    make_model: MakeModel, builder: SequenceBuilder, pictures: np.ndarray, kind: dict[str, Any]
) -> None:
    """Sampled by their own seeds; one is cancelled, one has no image, one is cut off early."""
    model = make_model(**kind)
    wanted = requests_of(builder, pictures, sampling=SamplingParams(temperature=0.9, top_k=20), seed=(5, 1))
    wanted.append(AnswerJob([builder.tokenizer.bos_token_id], (), 3, SamplingParams(), (9,)))
    alone = []
    for request in wanted:
        one = AnswerGenerator(model, builder, max_batch_size=1, max_length=96)
        [made] = one.add([request])
        while one.answers:
            one.step()
        alone.append(made.tokens)
    answering = AnswerGenerator(model, builder, max_batch_size=3, max_length=96)
    first = answering.add(wanted[:2])
    answering.step()
    third = answering.add(wanted[2:3])[0]
    answering.step()
    answering.remove(first[0])
    late = answering.add(wanted[4:])[0]
    while answering.answers:
        answering.step()
    assert first[0].tokens == alone[0][:2]
    assert [one.tokens for one in (first[1], third, late)] == [alone[1], alone[2], alone[4]]
    assert answering.text(third) == builder.tokenizer.decode(third.tokens, skip_special_tokens=True)
    with pytest.raises(ValueError, match="not being generated"):
        answering.remove(first[0])


def test_the_eos_ends_an_answer_and_is_not_in_it(make_model: MakeModel, builder: SequenceBuilder, pictures: np.ndarray) -> None:
    model = make_model()
    request = requests_of(builder, pictures)[0]
    answering = AnswerGenerator(model, builder, max_length=96)
    [cut] = answering.add([request])
    while answering.answers:
        answering.step()
    assert (cut.stopped, len(cut.tokens)) == (False, 8)
    answering._eos = cut.tokens[3]  # what it says fourth now ends it
    [ended] = answering.add([request])
    steps = 0
    while answering.answers:
        steps += 1
        done = answering.step()
    assert (ended.stopped, ended.tokens) == (True, cut.tokens[: cut.tokens.index(cut.tokens[3])])
    assert done == [ended]
    assert steps == len(ended.tokens) + 1


def test_refusals(make_model: MakeModel, builder: SequenceBuilder, pictures: np.ndarray) -> None:
    answering = AnswerGenerator(make_model(), builder, max_batch_size=1, max_length=100)
    request = requests_of(builder, pictures)[0]
    with pytest.raises(ValueError, match="16 image placeholders for 0 images"):
        answering.add([AnswerJob(request.prompt_ids, ())])
    with pytest.raises(ValueError, match="2 answers do not fit, there is room for 1"):
        answering.add([request, request])
    with pytest.raises(ValueError, match="for 100 tokens each"):
        answering.add([AnswerJob(request.prompt_ids, request.pictures, 90)])
    assert answering.step() == []


def test_a_stop_string_ends_an_answer_and_nobody_elses(
    make_model: MakeModel, builder: SequenceBuilder, pictures: np.ndarray
) -> None:
    """Its step is its last, and frees its place; the text goes up to the string, the tokens to its end."""
    model, random = make_model(), SamplingParams(temperature=100.0)
    free = requests_of(builder, pictures, sampling=random, seed=(3,))
    expected = generate_answers(AnswerGenerator(model, builder, max_length=96), free)
    words = expected[0].split()
    stop = f"{words[1][-1]} {words[2]}"
    stopped = [replace(free[0], stop=(stop, "never said")), *free[1:]]
    answering = AnswerGenerator(model, builder, max_length=96)
    assert generate_answers(answering, stopped) == [expected[0][: expected[0].index(stop)], *expected[1:]]
    [made] = answering.add(stopped[:1])
    assert [answering.step() for _ in range(3)] == [[], [], [made]]
    assert (made.stopped, answering.text(made), answering.free_slots) == (True, " ".join(words[:3]), answering.max_batch_size)


@pytest.mark.parametrize("base", ["small_base", "emu3_base"])
def test_answers_about_several_images_are_the_plain_loops(request: pytest.FixtureRequest, base: str) -> None:
    model, processor = load(str(request.getfixturevalue(base)))
    builder, side = SequenceBuilder(processor), processor.picture_size
    first, second = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    shown = [(first, second), (second,), (second, first)]
    asked = ["is there ?", "what ?", "is there ?"]
    turns = [[("user", [*several, words])] for several, words in zip(shown, asked, strict=True)]
    jobs = [AnswerJob((one := builder.conversation(turn, Task.MMU)).input_ids, one.pictures, 4) for turn in turns]
    expected = answer(model, builder, [shown[0], second, shown[2]], asked, 4)
    assert generate_answers(AnswerGenerator(model, builder, 4), jobs) == expected
    assert answer(model, builder, [shown[0]], asked[:1], 4) == expected[:1]
