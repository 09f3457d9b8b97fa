"""The benchmark of edits: ground truth gives the ceiling, the unchanged source the floor, and a wrong object its reason."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from unidecouple.eval.benchmark import Images, evaluate
from unidecouple.eval.suite import BenchmarkOptions, SyntheticSizes, open_benchmarks
from unidecouple.world.edit_benchmark import edits_benchmark, judge_edits
from unidecouple.world.edits import KINDS, edit_set
from unidecouple.world.judge import TemplateJudge
from unidecouple.world.scene import Scene, render
from unidecouple.world.sprites import sprite


class Painter:
    """Generates images from the source images that it is given, by a function of the prompt's number and its source."""

    def __init__(self, paint: object) -> None:
        self.paint = paint

    def ask(self, queries: Sequence[object], /) -> list[str]:
        raise AssertionError

    def generate(self, prompts: Sequence[str], num_images: int, first: int, sources: Images = (), /) -> list[list[np.ndarray]]:
        assert len(prompts) == len(sources)
        return [[self.paint(first + n, *shown)] * num_images for n, shown in enumerate(sources)]  # type: ignore[operator]


@functools.cache
def targets() -> list[np.ndarray]:
    return [render(one.target) for one in edit_set("test", 6, 3)]


@pytest.mark.parametrize(("paint", "accuracy"), [(lambda n, source: targets()[n], 1.0), (lambda n, source: source, 0.0)])
def test_a_perfect_model_and_one_that_copies(paint: object, accuracy: float) -> None:
    result = evaluate(edits_benchmark("test", 6, 2, 3), Painter(paint))
    names = [f"accuracy/{kind}" for kind in KINDS]
    assert [(row.metric, row.value, row.ceiling, row.floor) for row in result.scores] == [
        (name, accuracy, 1.0, 0.0) for name in (*names, "accuracy")
    ]
    assert len(result.verdicts) == 6 * 2 * len(KINDS)
    assert set(result.proportions) == {*names, "accuracy"}


def test_reasons_name_what_is_missing_and_what_is_too_much() -> None:
    one = next(one for one in edit_set("test", 6, 3) if one.kind == "recolor" and len(one.target.objects) == 2)
    first, other = one.target.objects
    judge = TemplateJudge()
    [verdict] = judge_edits([one], [[render(Scene((first,)))]], judge)
    assert not verdict.correct
    assert verdict.reason.startswith("lacks a")
    assert f"{other.color} {other.name} in the" in verdict.reason
    [verdict] = judge_edits([one], [[render(one.source)]], judge)
    assert [line.partition(" ")[0] for line in verdict.reason.splitlines()] == ["has", "lacks"]
    assert [judge_edits([one], [[np.full((64, 64, 3), 255, np.uint8)]], judge)[0].reason.count("lacks")] == [2]


def mirrored(name: str, color: str, size: int) -> np.ndarray:
    """Another style: each drawing seen in a mirror."""
    return np.ascontiguousarray(sprite(name, color, size)[:, ::-1])


def test_a_held_out_style_counts_in_either_style() -> None:
    """A model may keep the source's style, or return to that of its training; the judge of one style would not do."""
    benchmark, edits = edits_benchmark("test", 6, 1, 3, mirrored), edit_set("test", 6, 3)
    assert not np.array_equal(benchmark.sources[0][0], render(edits[0].source))
    assert np.array_equal(benchmark.sources[0][0], render(edits[0].source, mirrored))
    other = [render(one.target, mirrored) for one in edits]
    for drawn in (targets(), other):
        result = evaluate(benchmark, Painter(lambda n, source, drawn=drawn: drawn[n]))
        assert [(row.value, row.ceiling, row.floor) for row in result.scores] == [(1, 1, 0)] * 5
    verdicts = judge_edits(edits, [[image] for image in other], TemplateJudge())
    assert sum(verdict.correct for verdict in verdicts) < len(edits)


def test_it_is_found_by_its_name() -> None:
    [benchmark] = open_benchmarks(["edits"], BenchmarkOptions(limit=2, sizes=SyntheticSizes(num_images=1)))
    assert (benchmark.name, len(benchmark.metadata), len(benchmark.sources)) == ("edits", 8, 8)
    with pytest.raises(ValueError, match="on the synthetic benchmark only"):
        open_benchmarks(["edits"], BenchmarkOptions(data=Path()))
