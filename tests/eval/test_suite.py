"""Benchmarks by name: where each comes from, what a limit and a parser mean, mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from published_sets import write_mme, write_pope, write_vqav2
from unidecouple.eval.benchmark import GenerationBenchmark, QABenchmark
from unidecouple.eval.geneval_prompts import write_official
from unidecouple.eval.suite import BenchmarkOptions, SyntheticSizes, open_benchmarks
from unidecouple.plugins import BENCHMARKS


def test_the_world_without_a_folder() -> None:
    pope, vqa, geneval = open_benchmarks(("pope", "vqa", "geneval"), BenchmarkOptions(limit=4, sizes=SyntheticSizes(num_images=2)))
    assert isinstance(pope, QABenchmark)
    assert isinstance(vqa, QABenchmark)
    assert isinstance(geneval, GenerationBenchmark)
    assert (len(vqa.queries), len(geneval.metadata), geneval.num_images) == (12, 24, 2)
    assert pope.files == {}


def test_files_of_several_benchmarks_in_one_folder(tmp_path: Path) -> None:
    write_pope(tmp_path / "pope")
    write_vqav2(tmp_path / "vqa")
    write_mme(tmp_path / "mme")
    write_official(tmp_path / "geneval")
    names = ("mme", "pope", "vqa", "geneval")
    opened = open_benchmarks(names, BenchmarkOptions(tmp_path, limit=1, parsers=("llava", "vqav2")))
    assert tuple(one.name for one in opened) == names
    results = [one.score({query.id: "yes" for query in one.queries}) for one in opened if isinstance(one, QABenchmark)]
    assert [result.judge for result in results] == ["official", "llava", "vqav2"]
    assert [len(one.queries) for one in opened if isinstance(one, QABenchmark)] == [4, 1, 1]


@pytest.mark.parametrize("name", ["mmmu", "mme"])
def test_some_have_no_synthetic_form(name: str) -> None:
    with pytest.raises(ValueError, match="give the folder of its published files"):
        open_benchmarks((name,), BenchmarkOptions())


@pytest.mark.parametrize("name", BENCHMARKS)
def test_an_empty_folder_is_told(tmp_path: Path, name: str) -> None:
    said = "edits exist on the synthetic benchmark only" if name == "edits" else f"has no {name}"
    with pytest.raises(ValueError, match=said):
        open_benchmarks((name,), BenchmarkOptions(tmp_path))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (BenchmarkOptions(limit=0), "limit is 0"),
        (BenchmarkOptions(parsers=("loose",)), "unknown parser 'loose'"),
        (BenchmarkOptions(parsers=("llava", "exact")), "llava and exact, which are of one benchmark"),
    ],
)
def test_mistakes(options: BenchmarkOptions, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        open_benchmarks(("pope",), options)
    with pytest.raises(ValueError, match="unknown benchmark 'popes'"):
        open_benchmarks(("popes",), BenchmarkOptions())
