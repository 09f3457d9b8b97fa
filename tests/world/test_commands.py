"""``unidecouple assemble``: from a language model, from nothing, or aligned; its former names warn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tiny_language import write_language
from unidecouple.cli import main
from unidecouple.convert.load import load
from unidecouple.world import scratch


def test_from_a_language_model(small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    language = write_language(tmp_path / "lm")
    (language / "LICENSE").write_text("Apache-2.0")
    words = ["assemble", "--language", str(language), "--parts", str(small_base), "--output", str(tmp_path / "base")]
    assert main(words) == 0
    assert "vocabulary 290, 4 tokens added" in capsys.readouterr().out
    assert (tmp_path / "base" / "LICENSE").read_text() == "Apache-2.0"
    assert load(str(tmp_path / "base"))[0].config.text_config.num_key_value_heads == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give one of --language"),
        (["recipe.yaml", "--language", "lm"], "give one of --language"),
        (["--align", "base", "--seed", "1"], "--parts and --seed go with --language"),
        (["--language", "nowhere"], "no language model at nowhere"),
    ],
)
def test_what_is_refused(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["assemble", *words, "--output", str(tmp_path / "base")]) == 1
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_former_names_do_the_same_and_warn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[Any] = []
    monkeypatch.setattr(scratch, "align", lambda checkpoint, folder, say: called.append((checkpoint, folder)))
    monkeypatch.setattr(scratch, "make_scratch", lambda settings, folder, say: called.append((settings.pictures, folder)))
    recipe = str(Path(__file__).parents[2] / "recipes/base/tokenizer.yaml")
    for words in (["assemble", "--align", "base"], ["align", "base"], ["assemble", recipe], ["tokenizer", recipe, "pictures=9"]):
        caplog.clear()
        assert main([*words, "--output", "out"]) == 0
        warned = f"`unidecouple {words[0]}" in caplog.text
        assert warned == (words[0] != "assemble")
    assert called == [(Path("base"), Path("out"))] * 2 + [(12000, Path("out")), (9, Path("out"))]
