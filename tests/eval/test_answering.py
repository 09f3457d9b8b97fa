"""Answers survive kills, come from any number of processes, and are asked once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from unidecouple.eval.answering import collect, complete, read_answers
from unidecouple.eval.benchmark import Query
from unidecouple.shares import WorkShare

PICTURE = np.zeros((4, 4, 3), np.uint8)
QUERIES = tuple(Query(f"q{number}", f"question {number}", PICTURE) for number in range(7))


class Model:
    """Answers with the question, and dies after ``lives`` batches."""

    def __init__(self, lives: int = 99) -> None:
        self.asked: list[str] = []
        self.lives = lives

    def __call__(self, queries: Sequence[Query]) -> list[str]:
        if not self.lives:
            raise KeyboardInterrupt
        self.lives -= 1
        self.asked += [query.id for query in queries]
        return [f"{query.text}!\nsecond line" for query in queries]


def test_a_stopped_one_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    first, second = Model(lives=2), Model()
    with pytest.raises(KeyboardInterrupt):
        collect(first, QUERIES, tmp_path, 2)
    collect(second, QUERIES, tmp_path, 2)
    assert first.asked == ["q0", "q1", "q2", "q3"]
    assert second.asked == ["q4", "q5", "q6"]
    assert complete(read_answers(tmp_path), QUERIES, tmp_path)["q3"] == "question 3!\nsecond line"


def test_a_line_that_a_kill_cut_short_is_asked_again_and_harms_no_other(tmp_path: Path) -> None:
    collect(Model(), QUERIES[:3], tmp_path, 8)
    file = tmp_path / "answers.0.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    model = Model()
    collect(model, QUERIES, tmp_path, 8)
    assert model.asked == ["q2", "q3", "q4", "q5", "q6"]
    assert list(read_answers(tmp_path)) == [query.id for query in QUERIES]


@pytest.mark.parametrize("before", [1, 3])
def test_processes_share_what_is_left(tmp_path: Path, before: int) -> None:
    for rank in range(before):
        collect(Model(), QUERIES[:4], tmp_path, 8, WorkShare(rank, before))
    done = set(read_answers(tmp_path))
    models = [Model(), Model()]
    left = [query for query in QUERIES if query.id not in done]
    for rank, model in enumerate(models):  # each reads before any writes: here the second sees the first's answers
        collect(model, left if rank else QUERIES, tmp_path / "apart" if rank else tmp_path, 8, WorkShare(rank, 2))
    assert models[0].asked == [query.id for query in left][::2]
    assert models[1].asked == [query.id for query in left][1::2]


def test_independent_shares_ask_their_part_whatever_is_done(tmp_path: Path) -> None:
    models = [Model(), Model(), Model()]
    for rank, model in zip((1, 0, 1), models, strict=True):
        collect(model, QUERIES, tmp_path, 8, WorkShare(rank, 2, independent=True))
    assert [model.asked for model in models] == [["q1", "q3", "q5"], ["q0", "q2", "q4", "q6"], []]


def test_kinds_lie_apart(tmp_path: Path) -> None:
    collect(Model(), QUERIES, tmp_path, 8, kind="blind")
    assert read_answers(tmp_path) == {}
    assert len(read_answers(tmp_path, "blind")) == len(QUERIES)


def test_what_cannot_be_scored_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lacks 7 answers, the first to 'q0'"):
        complete({}, QUERIES, tmp_path)
    with pytest.raises(ValueError, match="two questions have the same id"):
        collect(Model(), [*QUERIES, QUERIES[0]], tmp_path, 8)
    with pytest.raises(ValueError, match="gave 1 answers to 2 questions"):
        collect(lambda queries: ["yes"], QUERIES, tmp_path, 2)
