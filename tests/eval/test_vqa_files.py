"""VQA from files: VQAv2's own and plain lines; both matches, floors, errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from own_data import write_jsonl, write_pictures
from published_sets import ONE_WORD, write_vqav2
from unidecouple.eval.vqa_files import open_files

PLAIN = [
    {"image": "a.png", "question": "What is it?", "answer": "A cat.", "kind": "thing"},
    {"image": "a.png", "question": "What color?", "answers": ["red", "dark red"], "kind": "color"},
    {"image": "b.png", "question": "What color?", "answer": "blue", "kind": "color"},
]


def test_vqav2(tmp_path: Path) -> None:
    benchmark = open_files(write_vqav2(tmp_path), "vqav2")
    assert [query.text for query in benchmark.queries] == ["How many?" + ONE_WORD, "What is it?" + ONE_WORD]
    assert len(benchmark.files) == 2
    rows = {row.metric: row.value for row in benchmark.score({"70": "Two", "71": "dog"}).scores}
    assert (rows["accuracy/number"], rows["accuracy/other"], rows["accuracy"]) == (1.0, 0.0, 0.5)
    assert benchmark.export is not None
    benchmark.export({"70": "2", "71": "x"}, tmp_path)
    results = json.loads((tmp_path / "vqa_results.json").read_text())
    assert results == [{"question_id": 70, "answer": "2"}, {"question_id": 71, "answer": "x"}]


def test_plain_lines_by_exact_match(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", "a.png", "b.png")
    write_jsonl(tmp_path / "vqa.jsonl", PLAIN)
    benchmark = open_files(tmp_path, "exact")
    report = benchmark.score({"0": "a cat", "1": "Dark red", "2": ""})
    rows = {row.metric: row for row in report.scores}
    assert rows["accuracy"].value == pytest.approx(2 / 3)
    assert (rows["accuracy/color"].value, rows["accuracy/color"].floor) == (0.5, 0.5)  # "red" is as frequent as any
    assert report.failures == {"empty": 1}
    assert len(open_files(tmp_path, "exact", limit=2).queries) == 2


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown VQA parser 'fuzzy'"):
        open_files(tmp_path, "fuzzy")
    write_vqav2(tmp_path)
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text('{"annotations": [{"question_id": 1}]}')
    with pytest.raises(ValueError, match="question 70 has no annotation"):
        open_files(tmp_path, "exact")
    (tmp_path / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(ValueError, match=r"v2_mscoco_val2014_annotations\.json is not"):
        open_files(tmp_path, "exact")
    write_jsonl(tmp_path / "vqa.jsonl", [{"image": "a.png", "question": "?"}])
    with pytest.raises(ValueError, match="leave the questions of one set there"):
        open_files(tmp_path, "exact")
    (tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json").unlink()
    with pytest.raises(ValueError, match=r"vqa\.jsonl:1: neither 'answer' nor 'answers'"):
        open_files(tmp_path, "exact")
