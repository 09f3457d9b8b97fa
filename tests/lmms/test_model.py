"""The plug-in against stand-ins for lmms-eval's two classes; ``make lmms`` runs it under lmms-eval itself."""

from __future__ import annotations

import importlib
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unidecouple.convert.load import load
from unidecouple.data.sequences import QAPair, SequenceBuilder, pixels
from unidecouple.eval.model import EvalModel
from unidecouple.generate.sampling import image_sampling
from unidecouple.generate.text import answer

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
ASKED = ("Is there a cow in the image?", "What color is the pig?", "How many cows are there?")


@dataclass
class Instance:
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Manifest:
    model_id: str
    simple_class_path: str


class Lmms:
    def __init__(self) -> None:
        self.task_dict = {"drawn": {"test": [[PICTURE], [PICTURE], [PICTURE, PICTURE]]}}


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The plug-in's module, named as the entry point names it."""
    fakes = {"lmms_eval.api.instance": ("Instance", Instance), "lmms_eval.api.model": ("lmms", Lmms)}
    fakes["lmms_eval.models.registry_v2"] = ("ModelManifest", Manifest)
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models", *fakes):
        module = ModuleType(name)
        if name in fakes:
            setattr(module, *fakes[name])
        monkeypatch.setitem(sys.modules, name, module)
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]
    module, function = declared["lmms_eval.models"]["unidecouple"].split(":")
    path = getattr(importlib.import_module(module), function)().simple_class_path
    monkeypatch.delitem(sys.modules, "unidecouple.lmms.model", raising=False)
    return getattr(importlib.import_module(path.rpartition(".")[0]), path.rpartition(".")[2])


def requests(*numbers: int, **settings: Any) -> list[Instance]:
    return [Instance((ASKED[n], settings, lambda document: document, n, "drawn", "test")) for n in numbers]


def test_answers_are_ours_and_cut_where_the_task_says(plugin: Any, small_base: Path) -> None:
    model, processor = load(str(small_base))
    seen = processor.understood(PICTURE)
    expected = answer(model, SequenceBuilder(processor), [seen, seen], ASKED[:2], 5)
    ours = plugin(pretrained=str(small_base), batch_size="2", device="cpu", unknown="x")
    assert ours.generate_until(requests(0, 1, max_new_tokens=5)) == expected
    first = expected[0].split()[0]
    assert ours.generate_until(requests(0, max_new_tokens=5, until=[first])) == [expected[0].split(first)[0]]


def test_answers_about_several_pictures_and_none(plugin: Any, small_base: Path) -> None:
    model, processor = load(str(small_base))
    seen = processor.understood(PICTURE)
    expected = answer(model, SequenceBuilder(processor), [[seen, seen], seen, []], [ASKED[2], ASKED[0], ASKED[1]], 5)
    ours = plugin(pretrained=str(small_base), batch_size="3")
    without = Instance((ASKED[1], {"max_new_tokens": 5}, lambda document: None, 1, "drawn", "test"))
    assert ours.generate_until([*requests(2, 0, max_new_tokens=5), without]) == expected


def test_visual_cot_generates_from_the_pictures_and_answers_about_all(plugin: Any, small_base: Path) -> None:
    model, processor = load(str(small_base))
    builder, seen = SequenceBuilder(processor), processor.understood(PICTURE)
    contexts = ["[GEN_PROMPT]the cow is red[/GEN_PROMPT]\n[QUESTION] How many cows\nare there? [/QUESTION]", "there is no pig"]
    given = [
        Instance((context, {"max_new_tokens": 5, "visual_cot": True}, lambda document: document, number, "drawn", "test"))
        for context, number in zip(contexts, (0, 2), strict=True)
    ]
    scored = EvalModel(model, processor, 5, image_sampling(model.generation_config), seed=3)
    [[first]] = scored.generate(["the cow is red"], 1, 0, [[seen]])
    [[second]] = scored.generate(["there is no pig"], 1, 2, [[seen, seen]])
    questions = ["How many cows\nare there?", "there is no pig"]
    expected = answer(model, builder, [[seen, first], [seen, seen, second]], questions, 5)
    ours = plugin(pretrained=str(small_base), batch_size="2", seed="3")
    assert ours.generate_visual_cot(given) == expected
    assert [ours.generate_visual_cot([one])[0] for one in given] == expected
    other = plugin(pretrained=str(small_base), seed=4)
    drawn: list[Any] = []
    other._answers = lambda batch, pictures, questions: drawn.append(pictures[0][-1]) or ["x"] * len(batch)
    other.generate_visual_cot(given[:1])
    assert not np.array_equal(drawn[0], first)


def plainly(model: Any, builder: SequenceBuilder, picture: np.ndarray, question: str, words: str) -> tuple[float, bool]:
    """From the training code's own sequence, word by word, one row, no padding."""
    sample = builder.understanding(picture, [QAPair("x", question, words)])
    prompt, ids = builder.understanding_prompt(question), sample.input_ids[:-1]  # without the EOS
    assert ids[: len(prompt)] == prompt
    with torch.no_grad():
        inputs = {"input_ids": torch.tensor([ids]), "pixel_values": pixels([picture])}
        logits = model(**inputs, task_ids=torch.zeros(1, 1, dtype=torch.long)).logits[0]
    logs = logits.float().log_softmax(-1)
    places = range(len(prompt), len(ids))
    greedy = all(int(logs[place - 1].argmax()) == ids[place] for place in places)
    return sum(float(logs[place - 1, ids[place]]) for place in places), greedy


def choices(number: int, *words: str) -> list[Instance]:
    """As a multiple-choice task asks: the delimiter before each."""
    return [Instance((ASKED[number], f" {one}", lambda document: document, number, "drawn", "test")) for one in words]


def test_likelihoods_are_a_plain_forward_pass_s(plugin: Any, small_base: Path) -> None:
    model, processor = load(str(small_base))
    builder, seen = SequenceBuilder(processor), processor.understood(PICTURE)
    said = answer(model, builder, [seen], ASKED[:1], 3)[0]
    words = ("yes", "no", "a red cow and a blue pig", said)
    ours = plugin(pretrained=str(small_base), batch_size="3")
    expected = [plainly(model, builder, seen, ASKED[0], one) for one in words]
    weighed = ours.loglikelihood(choices(0, *words))
    for (value, greedy), (log, first) in zip(weighed, expected, strict=True):
        assert value == pytest.approx(-log, rel=1e-4)  # the smallest is the best in lmms-eval 0.7
        assert greedy is first
    assert [greedy for _, greedy in expected] == [False, False, False, True]
    targets = [Instance((ASKED[0], lambda d, w=one: w, lambda document: document, 0, "drawn", "test")) for one in words]
    assert [value for value, _ in ours.loglikelihood(targets)] == [-value for value, _ in weighed]


def test_a_choice_without_a_picture_among_others(plugin: Any, small_base: Path) -> None:
    ours = plugin(pretrained=str(small_base), batch_size="3")
    blind = Instance((ASKED[0], " yes", lambda document: [], 0, "drawn", "test"))
    first, second = choices(0, "yes", "no")
    mixed = ours.loglikelihood([first, blind, second])
    alone = [ours.loglikelihood([one])[0] for one in (first, blind, second)]
    assert [value for value, _ in mixed] == pytest.approx([value for value, _ in alone], rel=1e-4)
    assert len({round(value, 4) for value, _ in alone}) == 3


def test_what_is_not_served_is_said(plugin: Any, small_base: Path) -> None:
    ours = plugin(pretrained=str(small_base))
    with pytest.raises(ValueError, match="document 2 of drawn has 2 images"):
        ours.loglikelihood(choices(2, "yes"))
    with pytest.raises(ValueError, match="acc_mutual_info asks for choices without a document"):
        ours.loglikelihood([Instance(("", "yes"))])
    with pytest.raises(ValueError, match="is empty"):
        ours.loglikelihood(choices(0, " "))
    with pytest.raises(NotImplementedError, match="single questions"):
        ours.generate_until_multi_round([])
