"""Packaged recipes are found by name from any folder; a user's own file of that name wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from unidecouple import config
from unidecouple.compare.plan import Comparison
from unidecouple.config import ConfigError
from unidecouple.config.packaged import describe_recipe, packaged_recipe, recipe_names, recipe_path, recipes_folder
from unidecouple.run import RunConfig

CLONE = Path(__file__).parents[2] / "recipes"


def test_the_package_has_the_clone_s_recipes() -> None:
    assert recipes_folder().resolve() == CLONE
    assert recipe_names() == sorted(path.relative_to(CLONE).as_posix()[:-5] for path in CLONE.rglob("*.yaml"))


@pytest.mark.parametrize("name", ["janus_pro/unidecouple", "janus_pro/unidecouple.yaml", "recipes/janus_pro/unidecouple.yaml"])
def test_a_recipe_is_read_by_each_of_its_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.load(RunConfig, [Path(name)]) == config.load(RunConfig, [CLONE / "janus_pro" / "unidecouple.yaml"])


def test_a_file_of_that_name_wins_and_a_folder_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert recipe_path(Path("demo")) == packaged_recipe("demo")
    (tmp_path / "demo").rmdir()
    (tmp_path / "demo").write_text("max_steps: 7\n")
    assert config.load(RunConfig, [Path("demo")], ["data.kind=world"]).max_steps == 7


def test_a_recipe_of_one_s_own_starts_from_packaged_ones(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("base: [recipes/compare/own.yaml, method/unifork]\nname: mine\n")
    assert "unifork_branches" in config.load(Comparison, [own]).variants


def test_an_unknown_name_gets_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"did you mean the packaged recipe janus_pro/unidecouple\?"):
        config.load(RunConfig, [Path("janus_pro/unidecuople")])
    assert packaged_recipe("../pyproject") is None
    assert recipe_path(Path("x" * 5000)) == Path("x" * 5000)


def test_every_recipe_begins_with_a_sentence() -> None:
    for name in recipe_names():
        path = packaged_recipe(name)
        assert path is not None
        assert describe_recipe(path).endswith("."), name
