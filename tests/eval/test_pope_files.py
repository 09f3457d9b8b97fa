"""POPE's published files: what is asked, labels, scores by hand, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from published_sets import ONE_WORD, write_llava_pope, write_pope
from unidecouple.data.formats.record import ImageFile
from unidecouple.eval.pope_files import open_files
from unidecouple.files import sha256_file

CUP = "a.jpg Is there a cup in the image?"


@pytest.mark.parametrize("place", ["", "pope"])
def test_questions_are_asked_once_and_pictures_found(tmp_path: Path, place: str) -> None:
    folder = write_pope(tmp_path / place)
    benchmark = open_files(tmp_path, "official")
    assert [query.id for query in benchmark.queries][:2] == [CUP, "b.jpg Is there a fork in the image?"]
    assert len(benchmark.queries) == 4
    assert benchmark.queries[0].picture == ImageFile(folder / "val2014" / "a.jpg")
    name = f"{place}/coco/coco_pope_popular.json".removeprefix("/")
    assert benchmark.files[name] == sha256_file(folder / "coco" / "coco_pope_popular.json")


def test_scores_by_hand(tmp_path: Path) -> None:
    benchmark = open_files(write_pope(tmp_path), "exact")
    answers = {query.id: "no" for query in benchmark.queries} | {CUP: "Yes", "b.jpg Is there a person in the image?": "perhaps"}
    report = benchmark.score(answers)
    rows = {row.metric: row.value for row in report.scores}
    assert rows["accuracy"] == pytest.approx(5 / 6)
    assert (rows["accuracy/popular"], rows["accuracy/random"], rows["recall"]) == (0.5, 1.0, 1.0)
    assert (rows["accuracy/always yes"], rows["unparsed"], report.failures) == (0.5, 1.0, {"unparsed": 1})
    assert [sum(picture) for picture in report.proportions["accuracy"].clusters] == [3.0, 2.0]


def test_llava_s_file_brings_its_words_and_the_splits_their_labels(tmp_path: Path) -> None:
    benchmark = open_files(write_llava_pope(write_pope(tmp_path)), "llava")
    assert all(query.text.endswith(ONE_WORD) for query in benchmark.queries)
    right = {query.id: "Yes" if "cup" in query.id else "No" for query in benchmark.queries}
    assert {row.value for row in benchmark.score(right).scores if row.metric.startswith("accuracy/r")} == {1.0}
    (tmp_path / "coco" / "coco_pope_random.json").unlink()
    with pytest.raises(ValueError, match="asks 2 questions of split 'random', but 0 labels"):
        open_files(tmp_path, "llava")


def test_answers_are_written_as_the_official_script_reads_them(tmp_path: Path) -> None:
    benchmark = open_files(write_pope(tmp_path / "data"), "official", limit=1)
    assert len(benchmark.queries) == 1
    assert benchmark.export is not None
    benchmark.export({CUP: "Yes, there is"}, tmp_path / "out")
    for split in ("random", "popular", "adversarial"):
        line = json.loads((tmp_path / "out" / f"pope_{split}.jsonl").read_text())
        assert line == {"question": "Is there a cup in the image?", "answer": "Yes, there is"}


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no pope"):
        open_files(tmp_path, "official")
    folder = write_pope(tmp_path)
    with pytest.raises(ValueError, match="unknown POPE parser 'strict'"):
        open_files(folder, "strict")
    (folder / "val2014" / "b.jpg").unlink()
    with pytest.raises(ValueError, match=r"adversarial\.json:\d: image 'b\.jpg' is missing"):
        open_files(folder, "official")
    (folder / "coco" / "coco_pope_random.json").write_text('{"image": "a.jpg"}\n')
    with pytest.raises(ValueError, match=r"random\.json:1: 'text' is missing"):
        open_files(folder, "official")
    (folder / "coco" / "coco_pope_random.json").write_text('{"image": "a.j')
    with pytest.raises(ValueError, match=r"random\.json:1: no valid JSON"):
        open_files(folder, "official")
