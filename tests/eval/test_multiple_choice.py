"""Questions with four choices: both rules by hand, the model's own loss as oracle, the chance level, and a model that knows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from unidecouple.batch import Task
from unidecouple.convert.load import load
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.eval.benchmark import Query, evaluate
from unidecouple.eval.language import open_passages
from unidecouple.eval.model import EvalModel
from unidecouple.eval.multiple_choice import ChoiceQuestion, open_questions, report
from unidecouple.eval.statistics import ClusteredProportion
from unidecouple.world.text import training_passages


class Chooser:
    """Gives the choice that ``choose`` names the largest likelihood."""

    def __init__(self, choose: dict[str, str]) -> None:
        self.choose = choose

    def ask(self, queries: Sequence[Query]) -> list[str]:
        return [" ".join("-1.0" if one == self.choose.get(query.id) else "-50.0" for one in query.choices) for query in queries]

    def generate(self, prompts: Sequence[str], num_images: int, first: int) -> list[list[np.ndarray]]:
        raise NotImplementedError


def test_both_rules_by_hand() -> None:
    """-4 is the largest sum; per character it is -4 / 2 against -5 / 5. Equal choices count for the first."""
    items = [ChoiceQuestion(Query(name, "Question: ?\nAnswer:", None, "", ("no", "maybe")), 1) for name in ("a", "b")]
    result = report(items, {"a": "-4.0 -5.0", "b": "-1.0 -1.0"})
    assert [(row.metric, row.value, row.ceiling, row.floor) for row in result.scores] == [
        ("accuracy", 0.0, 1.0, 0.5),
        ("accuracy_norm", 1.0, 1.0, 0.5),
    ]
    assert result.failures == {"equal choices": 1}
    assert isinstance(result.proportions["accuracy"], ClusteredProportion)
    assert result.proportions["accuracy_norm"].clusters == ((1.0,), (1.0,))


def test_shipped_questions() -> None:
    benchmark = open_questions(None)
    assert len(benchmark.queries) == len({query.text + str(query.choices) for query in benchmark.queries}) == 80
    assert all(len(set(query.choices)) == 4 for query in benchmark.queries)
    file = files("unidecouple") / "assets" / "multiple_choice" / "questions.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert Counter(row["answer"] for row in rows) == dict.fromkeys(range(4), 20)
    right = {query.id: query.choices[row["answer"]] for query, row in zip(benchmark.queries, rows, strict=True)}
    texts = [*(query.text for query in open_passages(None).queries), *training_passages()]
    assert not [text for text in texts for row in rows if row["question"] in text]
    assert [row.value for row in evaluate(benchmark, Chooser(right)).scores] == [1.0, 1.0]
    assert evaluate(benchmark, Chooser({})).scores[0].value == 0.25


@torch.no_grad()
def test_the_model_s_loss_is_the_oracle(language_base: Path) -> None:
    model, processor = load(str(language_base))
    benchmark = open_questions(None, 3)
    answers = EvalModel(model, processor).ask(benchmark.queries)
    builder = SequenceBuilder(processor)
    for query, answer in zip(benchmark.queries, answers, strict=True):
        for choice, found in zip(query.choices, map(float, answer.split()), strict=True):
            ids = torch.tensor([builder.passage(f"{query.text} {choice}")])
            labels = ids.clone()
            labels[0, : len(builder.passage(query.text))] = -100
            out = model(input_ids=ids, labels=labels, task_ids=torch.full((1, 1), int(Task.MMU)))
            assert found == pytest.approx(-float(out.loss) * int((labels != -100).sum()), rel=1e-4)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"question": "a?", "choices": ["x"], "answer": 0}, r"'choices' has 1 different ones of 1"),
        ({"question": "a?", "choices": ["x", "x"], "answer": 0}, r"'choices' has 1 different ones of 2"),
        ({"question": "a?", "choices": ["x", "y"], "answer": 2}, r"'answer' is 2, but the choices are numbered 0 to 1"),
        ({"question": "a?", "choices": ["x", 3.0], "answer": -1}, r"'answer' is -1"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, line: dict[str, object], said: str) -> None:
    (tmp_path / "multiple_choice").mkdir()
    file = tmp_path / "multiple_choice" / "own.jsonl"
    file.write_text(json.dumps({"question": "2 or 3?", "choices": [2, 3.0], "answer": 1}) + "\n")
    [query] = open_questions(tmp_path).queries
    assert (query.text, query.choices) == ("Question: 2 or 3?\nAnswer:", ("2", "3"))
    with pytest.raises(ValueError, match=r"'-1\.0' is no log-likelihood for each of 2 choices"):
        open_questions(tmp_path).score({"0": "-1.0"})
    file.write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=f"own.jsonl.*{said}"):
        open_questions(tmp_path)
