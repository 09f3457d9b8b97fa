"""JSON files: any record in any order, by hand-counted lines; damage costs what it touches and no more."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from own_data import asked, flat, write_jsonl
from unidecouple.data.formats import BAD, BadRecordError, Reader, open_readers
from unidecouple.data.formats.lines import JsonArray, JsonLines
from unidecouple.data.formats.record import Record, Turn


def open_one(path: Path, cache: Path | None = None) -> Reader:
    (reader,) = open_readers(path, cache=cache)
    return reader


def where(reader: Reader, index: int) -> str:
    return reader.record(index).where.rpartition("/")[2]


def test_lines_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "a.jsonl", [asked(question="Où est le château ?"), "", flat(), "{broken", asked(None, "Hi", "Ho")]
    )
    reader = open_one(path)
    assert reader.kinds.tolist() == [0, 1, BAD, 2]
    assert [where(reader, index) for index in (3, 0, 1)] == ["a.jsonl:5", "a.jsonl:1", "a.jsonl:3"]
    assert reader.record(0).turns[0].parts[1] == "Où est le château ?"
    with pytest.raises(BadRecordError, match=r"a.jsonl:4: no valid JSON: Expecting property name"):
        reader.record(2)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "\xff\xfe", "image": "a.png"}\n' + b"[" * 100_000 + b"\n" + json.dumps(flat()).encode())
    reader = open_one(path)
    assert reader.kinds.tolist() == [BAD, BAD, 1]
    for number in (0, 1):
        with pytest.raises(BadRecordError, match=r"no valid JSON|nested too deeply"):
            reader.record(number)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(prompts=st.lists(texts, max_size=5), indent=st.sampled_from([None, 1]), escaped=st.booleans())
def test_arrays_are_found_whatever_they_hold(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str], indent: int | None, escaped: bool
) -> None:
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_text(json.dumps(prompts, indent=indent, ensure_ascii=escaped), encoding="utf-8")
    reader = JsonArray(path, lambda value, place: Record("text", (Turn("user", (str(value),)),), place))
    assert [reader.record(index).turns[0].parts[0] for index in reversed(range(len(prompts)))] == prompts[::-1]
    if indent:
        assert [where(reader, index) for index in range(len(prompts))] == [f"a.json:{n + 2}" for n in range(len(prompts))]


@pytest.mark.parametrize("tail", ["", ",", ', {"prompt": "a c', " {}]", ", nonsense, {}]"])
def test_a_broken_array_keeps_what_came_before(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" + json.dumps(flat()) + ",\n" + json.dumps(flat()) + tail)
    reader = open_one(path)
    assert reader.kinds.tolist() == [1, 1, BAD]
    with pytest.raises(BadRecordError, match=r"a.json:2: no valid JSON"):
        reader.record(2)


def test_the_index_is_kept_until_the_file_changes(tmp_path: Path) -> None:
    path, cache = write_jsonl(tmp_path / "a.jsonl", [flat()]), tmp_path / "cache"
    first = open_one(path, cache).kinds.tolist()
    with mock.patch.object(JsonLines, "ranges", side_effect=AssertionError("read again")):
        assert open_one(path, cache).kinds.tolist() == first == [1]
        write_jsonl(path, [flat(), asked()])
        with pytest.raises(AssertionError, match="read again"):
            open_one(path, cache)
    assert open_one(path, cache).kinds.tolist() == [1, 0]
