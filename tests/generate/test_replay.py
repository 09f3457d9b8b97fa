"""Recorded steps: the tokens of steps that are computed anew, few recordings, and none twice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from decoder_kinds import KINDS
from tape import Tape
from unidecouple.convert.load import load
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.generate.answer_generator import AnswerGenerator, generate_answers
from unidecouple.generate.engine import Engine
from unidecouple.generate.fixed import BUCKET
from unidecouple.generate.image_generator import ImageGenerator, generate_image_tokens
from unidecouple.generate.jobs import AnswerJob, ImageJob
from unidecouple.generate.replay import CudaGraphs, GraphedStep, Recorder, fill, recorder_of
from unidecouple.generate.sampling import SamplingParams
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.processing import UniJanusProcessor

MakeModel = Callable[..., UniJanusForConditionalGeneration]

CHOICES = [
    SamplingParams(temperature=0.0),
    SamplingParams(),
    SamplingParams(temperature=0.7, top_k=5),
    SamplingParams(temperature=1.0, top_p=0.6),
]
LONG = "a photo of a red cow and a blue pig and a cow and a pig and a bus and a cup and " * 3
SERVED = pytest.mark.parametrize("kind", [KINDS[n] for n in (0, 2, 5, 8)], ids=str)


class Sizes(Tape):
    """A tape that also says what was recorded, by the step's name and its size."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[Any, ...]] = []

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        """See ``Tape``."""
        assert isinstance(step, partial)
        self.sizes.append((step.func.__name__, *step.args))
        return super().__call__(step)

    def of(self, name: str) -> set[tuple[Any, ...]]:
        """The sizes in which the step ``name`` was recorded; none came twice."""
        found = [size for size in self.sizes if size[0] == name]
        assert len(set(found)) == len(found)
        return set(found)


def orders(builder: SequenceBuilder) -> list[ImageJob]:
    """Short and long prompts, with guidance and without, every way to choose."""
    prompts = [LONG if number % 4 == 3 else "a sketch of three yellow buses" for number in range(8)]
    return [
        ImageJob.of(builder, prompt, (n,), replace(CHOICES[n % 4], guidance_scale=(1.0, 3.0, 5.0)[n % 3]))
        for n, prompt in enumerate(prompts)
    ]


def coming_and_going(drawing: ImageGenerator, wanted: list[ImageJob]) -> dict[int, list[int]]:
    """Tokens by order: one joins every third step, and the second is cancelled."""
    found, given, step, waiting = {}, {}, 0, list(range(len(wanted)))
    while waiting or drawing.images:
        if waiting and drawing.free_slots and step % 3 == 0:
            number = waiting.pop(0)
            given[number] = drawing.add([wanted[number]])[0]
        if step == 7:
            drawing.remove(given.pop(1))
        for picture in drawing.step():
            number = next(n for n, one in given.items() if one is picture)
            found[number] = picture.tokens.tolist()
        step += 1
    return found


@SERVED
def test_pictures(make_model: MakeModel, builder: SequenceBuilder, kind: dict[str, Any]) -> None:
    """One who computes side by side, as on a GPU; long prompts cross the end of a bucket of keys."""
    model, tape = make_model(**kind), Sizes()
    expected = coming_and_going(ImageGenerator(model, builder, max_batch_size=3, max_prompt_length=120), orders(builder))
    drawing = ImageGenerator(model, builder, max_batch_size=3, max_prompt_length=120, recorder=tape)
    drawing._rows.fixed.waits = False
    assert coming_and_going(drawing, orders(builder)) == expected
    assert len({tuple(tokens) for tokens in expected.values()}) == 7
    carried, chosen = tape.of("_step"), tape.of("_choose")
    assert {rows for _, rows, _ in carried} <= {1, 2, 4, 6}
    assert {reach for _, _, reach in carried} == {BUCKET, 2 * BUCKET}
    assert {pictures for _, pictures, _ in chosen} <= {1, 2, 3}
    before = len(tape.recorded)
    assert before <= 4 * 2 + 3 * 8
    assert tape.repeated > before
    assert coming_and_going(drawing, orders(builder)) == expected
    assert len(tape.recorded) == before  # all that came again was there


def test_padding_is_no_ones(make_model: MakeModel, builder: SequenceBuilder) -> None:
    """Three images of five rows are computed as four and eight: whoever takes a padded row or slot later finds nothing in it."""
    model, tape = make_model(), Sizes()
    wanted = [
        ImageJob.of(builder, "a photo of a cow", (number,), SamplingParams(guidance_scale=3.0 if number else 1.0))
        for number in range(6)
    ]
    expected = generate_image_tokens(ImageGenerator(model, builder, max_batch_size=8, max_prompt_length=40), wanted)
    drawing = ImageGenerator(model, builder, max_batch_size=8, max_prompt_length=40, recorder=tape)
    assert torch.equal(generate_image_tokens(drawing, wanted[:3]), expected[:3])
    assert tape.of("_step") == {("_step", 8, BUCKET)}
    assert [size[1] for size in tape.of("_choose")] == [4]
    assert torch.equal(generate_image_tokens(drawing, wanted), expected)


def answers(answering: AnswerGenerator, wanted: list[AnswerJob]) -> list[list[int]]:
    """Tokens by request: they come one after the other, and the first is cancelled."""
    first = answering.add(wanted[:2])
    answering.step()
    third = answering.add(wanted[2:3])
    answering.step()
    answering.remove(first[0])
    late = answering.add(wanted[3:])
    while answering.answers:
        answering.step()
    return [one.tokens for one in (*first, *third, *late)]


@pytest.mark.slow
@SERVED
@pytest.mark.parametrize(
    "choice", [SamplingParams(temperature=0.0), SamplingParams(temperature=0.9, top_k=20)], ids=["greedy", "sampled"]
)
def test_answers(
    make_model: MakeModel, builder: SequenceBuilder, pictures: np.ndarray, kind: dict[str, Any], choice: SamplingParams
) -> None:
    questions = ["What?", LONG, "Is there a cow in the image?", "How many?"]
    wanted = [
        AnswerJob(builder.understanding_prompt(question), (picture,), length, choice, (5, 1))
        for question, picture, length in zip(questions, pictures, (30, 8, 12, 30), strict=True)
    ]
    model, tape = make_model(**kind), Sizes()
    expected = answers(AnswerGenerator(model, builder, max_batch_size=3, max_length=160), wanted)
    answering = AnswerGenerator(model, builder, max_batch_size=3, max_length=160, recorder=tape)
    answering._rows.fixed.waits = False
    assert answers(answering, wanted) == expected
    carried = tape.of("_step")
    assert len(carried) <= 3 * 3
    assert {rows for _, rows, _ in carried} <= {1, 2, 3}
    before = len(tape.recorded)
    assert answers(answering, wanted) == expected
    assert len(tape.recorded) == before


def test_rows_of_tokens_that_end(emu3_base: Path) -> None:
    """Emu3: what ends a row is fed by the tensors that a recording reads."""
    model, processor = load(str(emu3_base))
    builder = SequenceBuilder(processor)
    wanted = [
        ImageJob.of(builder, prompt, (3, number), SamplingParams(guidance_scale=3.0))
        for number, prompt in enumerate(("a red cat", "dog", "a blue bird"))
    ]
    expected = coming_and_going(ImageGenerator(model, builder, max_batch_size=2), wanted)
    tape = Sizes()
    assert coming_and_going(ImageGenerator(model, builder, max_batch_size=2, recorder=tape), wanted) == expected
    assert tape.of("_choose")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [KINDS[0], KINDS[2]], ids=str)
def test_no_graph_breaks_and_one_compilation_a_size(make_model: MakeModel, builder: SequenceBuilder, kind: dict[str, Any]) -> None:
    """torch.compile takes the whole step, and over a whole image compiles it once for each bucket of keys (C5)."""
    model, counter, sizes = make_model(**kind), CompileCounter(), []
    wanted = [ImageJob.of(builder, "cow " * 50, (0,), SamplingParams(guidance_scale=3.0, temperature=0.8, top_k=20, top_p=0.9))]
    expected = generate_image_tokens(ImageGenerator(model, builder, max_batch_size=1, max_prompt_length=120), wanted)

    def compiled(step: Callable[[], None]) -> Callable[[], None]:
        sizes.append(step)
        made = torch.compile(step, fullgraph=True, dynamic=False, backend=counter)
        made()
        return made

    torch._dynamo.reset()
    drawing = ImageGenerator(model, builder, max_batch_size=1, max_prompt_length=120, recorder=compiled)
    drawing._rows.fixed.waits = False
    assert torch.equal(generate_image_tokens(drawing, wanted), expected)
    assert len(sizes) == 3  # two buckets of keys, and the choice of a token
    assert counter.frame_count == 3
    torch._dynamo.reset()


def test_a_step_is_recorded_once_for_each_size() -> None:
    state, tape = torch.zeros(4), Sizes()

    def add(count: int) -> None:
        state[:count] += 1

    replayed = GraphedStep(add, tape)
    for count in (2, 4, 2, 2):
        replayed(count)
    assert state.tolist() == [4, 4, 1, 1]
    assert tape.sizes == [("add", 2), ("add", 4)]
    assert [replayed.padded(count, 6) for count in range(1, 7)] == [1, 2, 4, 4, 6, 6]
    assert [GraphedStep(add, None).padded(count, 6) for count in (3, 5)] == [3, 5]


def test_the_tape_is_as_strict_as_a_graph() -> None:
    """It repeats operators on the tensors it saw, whatever Python's names stand for meanwhile, and refuses to wait."""
    held, total = {"x": torch.ones(1)}, torch.zeros(1)

    def step() -> None:
        total.add_(held["x"] * 2)

    def wait() -> None:
        total.item()

    repeat = Tape()(step)
    held["x"].fill_(5)
    repeat()
    assert total.tolist() == [12]
    held["x"] = torch.zeros(1)
    repeat()
    assert total.tolist() == [22]
    with pytest.raises(RuntimeError, match="waits for the host"):
        Tape()(wait)


def test_where_it_is_on(make_model: MakeModel, processor: UniJanusProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recorder_of(torch.device("cpu")) is None
    assert Engine(make_model(), processor).recorder is None
    tape = Tape()
    monkeypatch.setattr("unidecouple.generate.engine.recorder_of", lambda device: tape)
    engine = Engine(make_model(), processor, max_batch_size=2, max_prompt_length=40)
    assert len(engine.generate_images(["a photo of a cow"])[0]) == 1
    assert tape.repeated > 0
    assert Engine(make_model(), processor, eager=True).recorder is None


def test_filling() -> None:
    column, flat = torch.zeros(3, 1), torch.zeros(3, dtype=torch.long)
    fill(column, [2.5], rest=1)
    fill(flat, [4, 5])
    assert (column.flatten().tolist(), flat.tolist()) == ([2.5, 1, 1], [4, 5, 0])


class FakeCuda:
    """Stands in for the calls that ``CudaGraphs`` makes, since torch refuses them without a GPU; notes their order."""

    def __init__(self, fails: bool) -> None:
        self.fails, self.calls = fails, []  # type: ignore[var-annotated]

    def put(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In place of torch's."""

        class Stream:
            def wait_stream(self, other: object) -> None:
                pass

        class Graph:
            def replay(self) -> None:
                pass

        def graph(made: object, **settings: object) -> Any:
            self.calls.append(f"capture in {settings['pool']}")
            if self.fails:
                raise RuntimeError("operation not permitted")
            return nullcontext()

        fakes = {"device": nullcontext, "stream": nullcontext, "Stream": Stream, "current_stream": Stream, "CUDAGraph": Graph}
        for name, fake in (fakes | {"graph": graph, "graph_pool_handle": lambda: "one pool"}).items():
            monkeypatch.setattr(f"torch.cuda.{name}", fake)


@pytest.mark.parametrize("fails", [False, True])
def test_the_calls_of_a_capture(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """Run once, then captured, both graphs in one pool; no more than the order of calls is shown here."""
    fake = FakeCuda(fails)
    fake.put(monkeypatch)
    graphs = CudaGraphs(torch.device("cuda"))
    if fails:
        with pytest.raises(RuntimeError, match=r"not permitted; --eager"):
            graphs(lambda: fake.calls.append("step"))
        return
    for _ in range(2):
        graphs(lambda: fake.calls.append("step"))()
    assert fake.calls == ["step", "capture in one pool", "step"] * 2


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_on_a_gpu(make_model: MakeModel, builder: SequenceBuilder, pictures: np.ndarray) -> None:
    model = make_model(ffn="ta_moe").cuda()
    found = []
    recorders: list[Recorder | None] = [None, CudaGraphs(torch.device("cuda", torch.cuda.current_device()))]
    for recorder in recorders:
        drawing = ImageGenerator(model, builder, max_batch_size=3, max_prompt_length=120, recorder=recorder)
        found.append([coming_and_going(drawing, orders(builder)) for _ in range(2)])
    assert found[0] == found[1]
    asked = [
        AnswerJob(builder.understanding_prompt("What?"), (picture,), 20, SamplingParams(), (n,))
        for n, picture in enumerate(pictures)
    ]
    texts = [
        generate_answers(AnswerGenerator(model, builder, max_batch_size=3, recorder=recorder), asked) for recorder in recorders
    ]
    assert texts[0] == texts[1]
