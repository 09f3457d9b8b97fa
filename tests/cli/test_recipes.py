"""``unidecouple recipes`` and ``unidecouple demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unidecouple import api, config
from unidecouple.cli import main
from unidecouple.cli.command import FAILED, OK
from unidecouple.compare.plan import Comparison
from unidecouple.run import RunConfig


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "list"]) == OK
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["demo"].startswith("The demo: a base that only understands learns generation")
    assert main(["recipes", "show", "emu3/unidecouple"]) == OK
    assert "base: [data.yaml]" in capsys.readouterr().out
    assert main(["recipes", "show", "emu3/unidecuple"]) == FAILED
    assert "did you mean emu3/unidecouple?" in capsys.readouterr().err


def test_copy_brings_what_a_recipe_starts_from_and_keeps_edits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copying = ["recipes", "copy", "janus_pro/unidecouple", "compare/own", "--output", str(tmp_path)]
    assert main(copying) == OK
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.yaml")}
    assert names == {"janus_pro/unidecouple.yaml", "janus_pro/data.yaml", "compare/own.yaml", "method/main.yaml"}
    copied = config.load(RunConfig, [tmp_path / "janus_pro" / "unidecouple.yaml"])
    assert copied == config.load(RunConfig, [Path("janus_pro/unidecouple")])
    assert main(copying) == OK  # nothing is lost
    (tmp_path / "method" / "main.yaml").write_text("edited: true\n")
    capsys.readouterr()
    assert main(copying) == FAILED
    assert "main.yaml exists, and unidecouple did not write it" in capsys.readouterr().err
    assert (tmp_path / "method" / "main.yaml").read_text() == "edited: true\n"


def test_demo_compares_the_packaged_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the call that trains: every option that the comparison reads is there."""
    seen: list[tuple[Any, Any, Any]] = []

    def compare(recipes: Any, output: Any, **given: Any) -> Path:
        seen.append((recipes, output, given["options"]))
        return tmp_path

    monkeypatch.setattr(api, "compare", compare)
    assert main(["demo", "--output", str(tmp_path), "--workers", "2"]) == OK
    ((recipes, output, options),) = seen
    assert ([*map(str, recipes)], output, options.workers) == (["demo"], tmp_path, 2)
    assert config.load(Comparison, [Path("demo")]).name == "demo"
