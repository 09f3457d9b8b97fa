"""Formats are detected by content, whatever the file is called; anything else is refused with the reason."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from own_data import asked, flat, png, write_jsonl, write_tar
from unidecouple.data.formats import KINDS, open_readers
from unidecouple.data.formats.detect import detect

LLAVA = {"conversations": [{"from": "human", "value": "<image>\n?"}, {"from": "gpt", "value": "A cat."}], "image": "a.png"}


def parquet(path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.Table.from_pylist([{"caption": "a cow", "image": {"bytes": png(), "path": None}}]), path)


def array(path: Path) -> None:
    path.write_text(json.dumps([LLAVA, LLAVA], indent=1), encoding="utf-8-sig")


WRITERS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "messages": (lambda path: write_jsonl(path, [asked()]), "messages", "mmu"),
    "llava lines": (lambda path: write_jsonl(path, [LLAVA]), "llava", "mmu"),
    "llava array": (array, "llava", "mmu"),
    "flat": (lambda path: write_jsonl(path, [flat()]), "flat", "t2i"),
    "a first line that is broken": (lambda path: write_jsonl(path, ["{", flat()]), "flat", "t2i"),
    "webdataset": (lambda path: write_tar(path, {"0.png": png(), "0.txt": b"a cow"}), "webdataset", "t2i"),
    "parquet": (parquet, "parquet", "t2i"),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("file", ["data", "data.json", "data.bin"])
def test_the_content_tells(tmp_path: Path, name: str, file: str) -> None:
    write, form, kind = WRITERS[name]
    write(tmp_path / file)
    (reader,) = open_readers(tmp_path / file)
    assert reader.format == form
    assert KINDS[int(reader.kinds[-1])] == kind


def test_folders_and_patterns(tmp_path: Path) -> None:
    for number in (1, 0):
        write_tar(tmp_path / f"{number}.tar", {f"{number}.png": png(), f"{number}.txt": b"a cow"})
    (tmp_path / "notes.md").write_text("no data")
    for path in (tmp_path, tmp_path / "*.tar"):
        assert [reader.path.name for reader in open_readers(path)] == ["0.tar", "1.tar"]
    write_jsonl(tmp_path / "a.jsonl", [flat()])
    with pytest.raises(ValueError, match=r"several formats \(.jsonl, .tar\)"):
        open_readers(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (gzip.compress(b"{}", mtime=0), "decompress it first"),
        (b"hello\nworld", "no known format; known are messages, llava"),
        (b'{\n "prompt": "pretty printed"\n}', "no known format"),
        (bytes(range(256)) * 8, "no known format"),
    ],
)
def test_what_is_no_data(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "data"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        detect(path)


def test_what_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.jsonl", tmp_path / "*.tar", tmp_path):
        with pytest.raises(ValueError, match="no data at"):
            open_readers(path)
    with pytest.raises(ValueError, match="data_type='csv' is not one of messages"):
        open_readers(tmp_path, "csv")
