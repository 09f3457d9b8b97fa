"""A published layout is converted once on the way; a changed source is converted again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from published import write_published
from tiny_emu3 import write_emu3
from unidecouple.convert import cache
from unidecouple.convert.cache import cache_folder
from unidecouple.convert.convert import convert
from unidecouple.convert.load import checkpoint_folder, load
from unidecouple.convert.steps import Conversion


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNIDECOUPLE_CACHE", str(tmp_path / "cache"))
    return write_published(tmp_path / "Janus-Pro-1B")


def test_it_is_the_conversion_and_is_made_once(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(path.name for path in published.iterdir())
    folder = checkpoint_folder(str(published))
    assert folder.parent == tmp_path / "cache" / "converted"
    convert(published, tmp_path / "by hand", Conversion(), lambda line: None)
    for file in ("config.json", "model.safetensors", "tokenizer.json", "LICENSE"):
        assert (folder / file).read_bytes() == (tmp_path / "by hand" / file).read_bytes()
    assert sorted(path.name for path in published.iterdir()) == before
    monkeypatch.setattr(cache, "convert", None)  # not called again
    assert checkpoint_folder(str(published)) == folder
    assert checkpoint_folder(os.path.relpath(published)) == folder


def test_a_changed_source_is_converted_again(published: Path) -> None:
    first = load(str(published))[0]
    for file in published.iterdir():
        file.unlink()
    published.rmdir()
    write_published(published, seed=1)
    second = load(str(published))[0]
    assert not torch.equal(first.lm_head.weight, second.lm_head.weight)


def test_a_broken_source_leaves_nothing_in_the_cache(published: Path) -> None:
    (published / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="safetensors"):
        checkpoint_folder(str(published))
    assert not [path for path in (cache_folder() / "converted").iterdir() if path.is_dir()]


def test_an_emu3_of_transformers_is_converted_on_the_way(tmp_path: Path) -> None:
    assert load(str(write_emu3(tmp_path / "emu3")))[0].config.model_type == "unidecouple_emu3"


def test_a_cache_that_cannot_be_made(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNIDECOUPLE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"cannot be created .*set UNIDECOUPLE_CACHE"):
        checkpoint_folder(str(published))


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("UNIDECOUPLE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "unidecouple"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "unidecouple"
