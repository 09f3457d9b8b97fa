"""Records of benchmark files: values that are read, values that are refused with file and line, encodings, line ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from own_data import write_jsonl, write_pictures
from published_sets import mmmu_row, write_mme
from unidecouple.eval import mme, mmmu, pope_files, vqa_files
from unidecouple.eval.geneval_prompts import read_metadata
from unidecouple.eval.judges.detections import read_verdicts
from unidecouple.eval.records import read_records, yes_no

QUESTION = {"image": "a.png", "question": "how many cows ?", "answer": "no"}
POPE = {"image": "a.png", "text": "Is there a cow?", "label": "no"}


def write(folder: Path, name: str, *rows: object) -> Path:
    write_pictures(folder, "a.png")
    write_jsonl(folder / name, list(rows))  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("value", ["no", "No", "NO", "no ", "\tNo.\n", "false", "False", "FALSE", False, 0, 0.0, "0"])
def test_every_spelling_of_no_scores_as_no(tmp_path: Path, value: object) -> None:
    assert yes_no(value) == "no"
    benchmark = pope_files.open_files(write(tmp_path, "coco_pope_random.json", POPE | {"label": value}), "official")
    rows = {row.metric: row.value for row in benchmark.score({"a.png Is there a cow?": "No"}).scores}
    assert (rows["accuracy"], rows["accuracy/always yes"]) == (1.0, 0.0)


@pytest.mark.parametrize("value", ["yes", "Yes.", " YES", "true", True, 1, 1.0, "1"])
def test_every_spelling_of_yes_scores_as_yes(tmp_path: Path, value: object) -> None:
    assert yes_no(value) == "yes"
    benchmark = pope_files.open_files(write(tmp_path, "coco_pope_random.json", POPE | {"label": value}), "official")
    assert {row.metric: row.value for row in benchmark.score({"a.png Is there a cow?": "yes"}).scores}["recall"] == 1.0


@pytest.mark.parametrize("value", ["maybe", "", "n", "nope", 2, -1, 0.5, None, [], {}, "yes, no", "unknown"])
def test_other_labels_are_refused_with_their_line(tmp_path: Path, value: object) -> None:
    write(tmp_path, "coco_pope_random.json", POPE, POPE | {"text": "Is there a pig?", "label": value})
    with pytest.raises(ValueError, match=r"coco_pope_random\.json:2: 'label' is "):
        pope_files.open_files(tmp_path, "official")


def test_contradicting_labels_of_one_question_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "coco_pope_random.json", POPE, POPE | {"label": "yes"})
    with pytest.raises(ValueError, match=r"random\.json:2: the question of .*random\.json:1, labelled 'yes' here and 'no' there"):
        pope_files.open_files(tmp_path, "official")


@pytest.mark.parametrize(
    ("given", "gold"),
    [
        ({"answer": 2}, ("2",)),
        ({"answer": 0}, ("0",)),
        ({"answer": 2.0}, ("2",)),
        ({"answer": 2.5}, ("2.5",)),
        ({"answer": False}, ("no",)),
        ({"answer": ["red", 2]}, ("red", "2")),
        ({"answers": [1, 2]}, ("1", "2")),
        ({"answers": "red"}, ("red",)),
        ({"answers": [{"answer": "no"}, {"answer": "yes", "answer_id": 2}]}, ("no", "yes")),
        ({"answers": {"answer": 3}}, ("3",)),
        ({"answers": None, "answer": "no"}, ("no",)),
    ],
)
def test_answers_in_every_usual_form(tmp_path: Path, given: dict[str, Any], gold: tuple[str, ...]) -> None:
    row = {key: value for key, value in (QUESTION | given).items() if key in given or key != "answer"}
    benchmark = vqa_files.open_files(write(tmp_path, "vqa.jsonl", row), "exact")
    for answer in gold:
        assert benchmark.score({"0": answer}).scores[0].value == 1.0
    assert benchmark.score({"0": "seven"}).scores[0].value == 0.0


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"answer": ""}, "'answer' is ''"),
        ({"answer": None}, "neither 'answer' nor 'answers'"),
        ({"answer": []}, r"'answer' is \[\]"),
        ({"answers": [None]}, "'answers' is None"),
        ({"answers": [["no"]]}, r"'answers' is \['no'\]"),
        ({"answers": [{"text": "no"}]}, "'answers' is None"),
        ({"image": None}, "'image' is null"),
        ({"image": ["a.png"]}, r"'image' is \['a\.png'\]"),
        ({"image": ""}, "'image' is ''"),
        ({"image": "b.png"}, r"image 'b\.png' is missing"),
        ({"image": "x" * 9999}, "image 'xxx"),
        ({"image": "a\0.png"}, r"image 'a\\x00\.png' is missing"),
        ({"question": None}, "'question' is null"),
        ({"question": "  "}, "'question' is '  '"),
        ({"question": 7}, "'question' is 7"),
        ({"question": "is it \ud83d ?"}, "'question' holds half of a surrogate pair .* at character 7"),
        ({"answer": "\udc00"}, "'answer' holds half of a surrogate pair"),
        ({"question_id": [1]}, r"'question_id' is \[1\]"),
        ({"question_id": "0"}, r"question_id '0' is that of .*vqa\.jsonl:1 too"),
        ({"answer": float("inf")}, "Infinity is no number of JSON"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_line(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    write_pictures(tmp_path, "a.png")
    (tmp_path / "vqa.jsonl").write_text(json.dumps(QUESTION) + "\n\n" + json.dumps(QUESTION | changed) + "\n")
    with pytest.raises(ValueError, match=rf"vqa\.jsonl:3: .*{said}") as error:
        vqa_files.open_files(tmp_path, "exact")
    assert len(str(error.value)) < 600 + len(str(tmp_path)) * 5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no records"),
        (b"\n \n", "has no records"),
        (b"[]", "has no records"),
        (b"[1]", "item 1: a JSON object is expected, not 1"),
        (b'"text"\n', ":1: a JSON object is expected, not 'text'"),
        (b'{"a": 1}\n{"a": ', ":2: no valid JSON"),
        (b'{"a": "\xff"}\n', ":1: no valid JSON"),
        (b'{"a": 1, "a": 2}\n', ":1: no valid JSON: a key appears twice"),
        (b"[" * 100_000, "JSON nested too deeply"),
        (b'{"a": ' * 100_000, ":1: JSON nested too deeply"),
        ('{"a": 1}\n'.encode("utf-16"), ":1: no valid JSON"),
    ],
)
def test_files_that_are_no_records(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.jsonl.*{said}"):
        read_records(tmp_path / "a.jsonl")


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\r"])
def test_only_line_feeds_end_a_line(tmp_path: Path, mark: str) -> None:
    text = f"how{mark}many?"
    content = b"\xef\xbb\xbf" + json.dumps({"a": text}, ensure_ascii=False).encode() + b"\r\n" + b'{"a": 2}'
    (tmp_path / "a.jsonl").write_bytes(content)
    assert [row["a"] for row in read_records(tmp_path / "a.jsonl")] == [text, 2]


def test_an_array_is_read_like_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('\n [{"a": 1},\n {"a": 2}]')
    assert [(row["a"], row.where) for row in read_records(tmp_path / "a.json")] == [
        (1, f"{tmp_path / 'a.json'}, item 1"),
        (2, f"{tmp_path / 'a.json'}, item 2"),
    ]


@pytest.mark.parametrize(("answer", "right"), [("B", "B"), ("b", "B"), ("(B)", "B"), ("b.", "B"), (" A ", "A")])
def test_letters_of_choices_in_every_usual_form(tmp_path: Path, answer: str, right: str) -> None:
    rows = [mmmu_row(1, "Art", "multiple-choice", "['a cat', 'a dog']", answer)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "validation-0.parquet")
    assert mmmu.open_files(tmp_path).score({"validation_Art_1": right}).scores[0].value == 1.0


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"answer": "C"}, "'answer' is 'C', but the options are A, B"),
        ({"answer": "1"}, "'answer' is '1', but the options are A, B"),
        ({"answer": "a dog"}, "'answer' is 'a dog', but the options are A, B"),
        ({"answer": None}, "'answer' is null"),
        ({"options": "[]"}, r"'options' is '\[\]'; give a list of 2 to 26"),
        ({"options": "['a"}, "'options' is "),
        ({"question_type": "multiple_choice"}, "'question_type' is 'multiple_choice'"),
        ({"question": None}, "'question' is null"),
        ({"id": "validation_Art_0"}, "id 'validation_Art_0' is that of .*, row 1 too"),
    ],
)
def test_rows_of_mmmu_that_cannot_be_scored(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    first = mmmu_row(0, "Art", "multiple-choice", "['a cat', 'a dog']", "A")
    rows = [first, mmmu_row(1, "Art", "multiple-choice", "['a cat', 'a dog']", "A") | changed]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "validation-0.parquet")
    with pytest.raises(ValueError, match=rf"validation-0\.parquet, row 2: .*{said}"):
        mmmu.open_files(tmp_path)


def test_labels_of_mme_in_every_usual_form(tmp_path: Path) -> None:
    write_mme(tmp_path)
    (tmp_path / "existence" / "1.txt").write_bytes(b"\xef\xbb\xbfIs it\xe2\x80\xa8?\tYES.\r\nIs it not?\t no \r\n\r\n")
    benchmark = mme.open_files(tmp_path)
    assert benchmark.queries[0].text == "Is it\u2028?"
    rows = {row.metric: row.value for row in benchmark.score({query.id: "yes" for query in benchmark.queries}).scores}
    assert rows["accuracy/existence"] == 0.5


LINE = {"tag": "position", "include": [{"class": "cup", "count": 1}], "prompt": "a photo of a cup"}


@pytest.mark.parametrize(
    "clauses",
    [
        None,
        [],
        ["cup"],
        [{"class": "cup"}],
        [{"class": "cup", "count": "2"}],
        [{"class": "cup", "count": 0}],
        [{"class": "", "count": 1}],
        [{"class": "cup", "count": 1, "color": 3}],
        [{"class": "cup", "count": 1, "position": ["left of", 0]}],
        [{"class": "cup", "count": 1}, {"class": "pen", "count": 1, "position": ["left", 0]}],
        [{"class": "cup", "count": 1}, {"class": "pen", "count": 1, "position": ["left of", -1]}],
        [{"class": "cup", "count": 1}, {"class": "pen", "count": 1, "position": "left of"}],
    ],
)
def test_prompts_of_geneval_that_nothing_could_judge(tmp_path: Path, clauses: object) -> None:
    write_jsonl(tmp_path / "m.jsonl", [LINE, LINE | {"include": clauses}])
    with pytest.raises(ValueError, match=r"m\.jsonl:2"):
        read_metadata(tmp_path / "m.jsonl")


@pytest.mark.parametrize(
    "changed",
    [
        {"correct": "perhaps"},
        {"correct": None, "detections": None},
        {"detections": [{"class": "cup", "score": "0.9", "box": [0, 0, 1, 1]}]},
        {"detections": [{"class": "cup", "score": 0.9, "box": [0, 0, 1]}]},
        {"detections": [{"class": "cup", "score": 0.9, "box": [0, 0, 1, None]}]},
        {"detections": ["cup"]},
        {"correct": True, "details": "{"},
        {"correct": True, "details": '{"cup": [[1, 2]]}'},
        {"filename": 5},
    ],
)
def test_verdicts_that_cannot_be_used(tmp_path: Path, changed: dict[str, Any]) -> None:
    write_jsonl(tmp_path / "r.jsonl", [{"filename": "00000/samples/0000.png"} | changed])
    with pytest.raises(ValueError, match=r"r\.jsonl:1"):
        read_verdicts(tmp_path / "r.jsonl", [LINE], 1)


def test_a_verdict_of_false_as_a_word_is_false(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "r.jsonl", [{"filename": "00000/samples/0000.png", "correct": "False"}])
    assert not read_verdicts(tmp_path / "r.jsonl", [LINE], 1).verdicts[0].correct
