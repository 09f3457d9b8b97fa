"""Paths that cannot be read as files are named without opening them, and messages can be printed whatever they quote."""

from __future__ import annotations

import os
import re
import shutil
import socket
from pathlib import Path

import pytest

from published import write_published
from unidecouple.cli.command import existing
from unidecouple.config import ConfigError, load
from unidecouple.data.formats import open_readers
from unidecouple.data.formats.record import ImageFile
from unidecouple.data.pictures import decode
from unidecouple.delta.checkpoint import open_checkpoint
from unidecouple.inputs import printable, quoted, refuse_special, refuse_surrogates, special_file
from unidecouple.run import RunConfig


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "data.jsonl")
    return tmp_path / "data.jsonl"


def test_what_is_no_file(pipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(pipe)
    (tmp_path / "plain").write_text("")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # a socket's path is at most 108 characters
        listening.bind("s")
        assert special_file(Path("s")) == "a socket"
    assert (special_file(pipe), special_file(tmp_path / "link")) == ("a named pipe", "a named pipe")
    assert special_file(Path("/dev/zero")) == "a device"
    assert [special_file(tmp_path / name) for name in ("plain", "gone", "", "a\0b", "\ud83d")] == [None] * 5


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("form", ["safetensors", "bin", "shards"])
def test_pointers_in_a_checkpoint_are_named(form: str, tmp_path: Path) -> None:
    """Whichever of its files a clone without Git LFS has not fetched."""
    whole = write_published(tmp_path / "whole", form=form)
    names = {path.name for path in whole.iterdir()} - {"README.md", "LICENSE", "processor_config.json"}
    for name in sorted(names):
        here = shutil.copytree(whole, tmp_path / "cloned", dirs_exist_ok=True)
        (here / name).write_text(POINTER)
        with pytest.raises(ValueError, match=rf"{re.escape(name)} is a Git LFS pointer.*git lfs pull"):
            open_checkpoint(str(here))


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.parquet", "data.tar"])
def test_pointers_in_the_place_of_data_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(ValueError, match=rf"{name} is a Git LFS pointer"):
        open_readers(tmp_path / name)


def test_a_pointer_in_the_place_of_an_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "cow.png").write_text(POINTER)
    with pytest.raises(ValueError, match=r"cow\.png: a Git LFS pointer"):
        decode(ImageFile(tmp_path / "cow.png"))


def test_pipes_are_refused_at_once(pipe: Path) -> None:
    """Opening one would wait for a writer."""
    with pytest.raises(ValueError, match="is a named pipe, not a file"):
        refuse_special(pipe)
    for data_type in (None, "messages", "webdataset", "parquet"):
        with pytest.raises(ValueError, match="is a named pipe, not a file"):
            open_readers(pipe, data_type)
    for path in (pipe.parent, pipe.parent / "*.jsonl"):
        with pytest.raises(ValueError, match="is a named pipe, not a file"):
            open_readers(path)
    with pytest.raises(ValueError, match=r"--image .*data\.jsonl is a named pipe: name a file"):
        existing(pipe, "--image")
    with pytest.raises(ConfigError, match="is a named pipe, not a file"):
        load(RunConfig, [pipe])


def test_quotes_are_short_and_printable() -> None:
    assert quoted("a cow") == "'a cow'"
    for value in ("x" * 10_000, ["x" * 10_000], b"\xff" * 10_000, "\ud83d" * 10_000, {"a": "\udcff" * 5000}):
        assert len(quoted(value)) <= 100
        quoted(value).encode()
    assert printable("a\ud83db") == "a\\ud83db"
    assert printable("a\0\x1b[31m\nb") == "a\\x00\\x1b[31m\nb"  # what a terminal would obey
    assert printable("0123456789", 8) == "01234…89"


def test_half_a_surrogate_pair() -> None:
    refuse_surrogates("a \U0001f600 cow\0")
    with pytest.raises(ValueError, match=r"the question 'a \\ud83d' has half a surrogate pair \(\\ud83d at character 2\)"):
        refuse_surrogates("a \ud83d", "question")
