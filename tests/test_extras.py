"""Messages about missing packages give a remedy that works, for extras that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from packaging.requirements import Requirement

from unidecouple.extras import Extra, missing_package, requirements

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("extra", get_args(Extra))
def test_the_remedy_lists_what_pyproject_lists(extra: Extra) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert {Requirement(line).name for line in requirements(extra)} == {Requirement(line).name for line in declared[extra]}


def test_the_message() -> None:
    error = missing_package("serve", "serve", ModuleNotFoundError("No module named 'fastapi'", name="fastapi"))
    assert re.fullmatch(r"serve needs fastapi, .*: pip install 'fastapi>=[\d.]+' 'uvicorn>=.*' \(extra 'serve' .*\)", str(error))


def test_no_message_names_an_extra_by_itself() -> None:
    texts = ((path, path.read_text(encoding="utf-8")) for path in sorted((ROOT / "unidecouple").rglob("*.py")))
    assert [path.name for path, text in texts if re.search(r"unidecouple\[\w+\]", text)] == []
