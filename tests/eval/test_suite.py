"""Benchmarks by name: where each comes from, what a limit and a parser mean, mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from published_sets import write_mme, write_pope, write_vqav2
from unidecouple.eval.benchmark import Quiz
from unidecouple.eval.gallery import Gallery
from unidecouple.eval.geneval_prompts import write_official
from unidecouple.eval.suite import Options, Sizes, open_benchmarks
from unidecouple.plugins import BENCHMARKS


def test_the_world_without_a_folder() -> None:
    pope, vqa, geneval = open_benchmarks(("pope", "vqa", "geneval"), Options(limit=4, sizes=Sizes(num_images=2)))
    assert isinstance(pope, Quiz)
    assert isinstance(vqa, Quiz)
    assert isinstance(geneval, Gallery)
    assert (len(vqa.queries), len(geneval.metadata), geneval.num_images, pope.parser) == (12, 24, 2, "official")
    assert pope.files == {}


def test_files_of_several_benchmarks_in_one_folder(tmp_path: Path) -> None:
    write_pope(tmp_path / "pope")
    write_vqav2(tmp_path / "vqa")
    write_mme(tmp_path / "mme")
    write_official(tmp_path / "geneval")
    names = ("mme", "pope", "vqa", "geneval")
    opened = open_benchmarks(names, Options(tmp_path, limit=1, parsers=("llava", "vqav2")))
    assert tuple(one.name for one in opened) == names
    assert [one.parser for one in opened if isinstance(one, Quiz)] == ["official", "llava", "vqav2"]
    assert [len(one.queries) for one in opened if isinstance(one, Quiz)] == [4, 1, 1]


@pytest.mark.parametrize("name", ["mmmu", "mme"])
def test_some_have_no_drawn_form(name: str) -> None:
    with pytest.raises(ValueError, match="give the folder of its published files"):
        open_benchmarks((name,), Options())


@pytest.mark.parametrize("name", BENCHMARKS)
def test_an_empty_folder_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"has no {name}"):
        open_benchmarks((name,), Options(tmp_path))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(limit=0), "limit is 0"),
        (Options(parsers=("loose",)), "unknown parser 'loose'"),
        (Options(parsers=("llava", "exact")), "llava and exact, which are of one benchmark"),
    ],
)
def test_mistakes(options: Options, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        open_benchmarks(("pope",), options)
    with pytest.raises(ValueError, match="unknown benchmark 'popes'"):
        open_benchmarks(("popes",), Options())
