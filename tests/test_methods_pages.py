"""The pages of methods: their snippets are grids that train, their figures are those of results/, what they name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from test_recipes import step_of_each_stage
from unidecouple import config
from unidecouple.api import training
from unidecouple.cli import main
from unidecouple.compare.budget import cells, check
from unidecouple.compare.plan import START, Comparison, jobs
from unidecouple.compare.runner import CompareOptions

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "methods"
PAGES = sorted(path for path in FOLDER.glob("*.md") if path.stem != "README")
OWN = config.load(Comparison, [ROOT / "recipes" / "compare" / "own.yaml"]).variants

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def grid_of(page: Path, folder: Path) -> Comparison:
    """The page's snippet as the index tells to use it: saved beside recipes/, its base a shipped one."""
    (snippet,) = re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "grid.yaml").write_text(snippet)
    return config.load(Comparison, [folder / "grid.yaml"], ["scenarios.own.model_name_or_path=unified"])


@pytest.mark.slow
@every_page
def test_snippets_are_grids_of_equal_budgets(page: Path, tmp_path: Path) -> None:
    grid = grid_of(page, tmp_path)
    added = {name: variant for name, variant in grid.variants.items() if name not in OWN}
    assert added
    assert all(variant.axis or variant.tasks != "both" for variant in added.values())
    check(grid, cells([job for job in jobs(grid) if job.seed == 0 and not job.rate and job.name != "unidecouple"]))


@pytest.mark.slow
@every_page
def test_snippets_take_a_step_of_each_stage(page: Path, small_base: Path, small_cache: Path, tmp_path: Path) -> None:
    for job in jobs(grid_of(page, tmp_path)):
        if job.name not in (*OWN, START) and job.seed == 0 and not job.rate and not job.merge:
            assert step_of_each_stage(job.config, small_base, small_cache, tmp_path / job.name) == len(job.config.stages)


@every_page
def test_measured_variants_are_named(page: Path) -> None:
    """Their figures are held against results in test_refresh.py, row by row."""
    text = page.read_text()
    assert "**Measured.**" in text
    tables = re.findall(r"\(`results/[\w-]+/`, scenario [\w-]+\):\n\n((?:\|.*\n)+)", text)
    assert tables or "**Measured.** Not measured yet" in text
    for table in tables:
        assert len(re.findall(r"^\| `\w+(?:@[\w.=]+)?` \| \S+ \| \S+ \| \S+ \|$", table, re.MULTILINE)) == table.count("\n") - 2


@every_page
def test_pages_are_short_and_what_they_name_exists(page: Path) -> None:
    text = page.read_text()
    assert len(text.splitlines()) <= 70
    assert f"({page.name})" in (FOLDER / "README.md").read_text()
    for part in ("arXiv", "**What we changed.**", "**When to use it.**"):
        assert part in text
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (FOLDER / link).exists(), link
    for named in re.findall(r"`([\w/]+/[\w.]*)`", text):
        assert (ROOT / named).exists() or (ROOT / "unidecouple" / named).exists(), named
    if "Not measured yet" in text and (variants := re.findall(r"`(\w+)`", text[text.index("Not measured yet") :])):
        assert set(variants) <= set(config.load(Comparison, [ROOT / "recipes" / "compare" / "field.yaml"]).variants)


def test_the_index_s_command_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without running it: pages' grids take a step above, and commands run in test_docs.py."""
    asked: list[tuple[Comparison, CompareOptions]] = []
    monkeypatch.setattr(training, "run_comparison", lambda grid, order: asked.append((grid, order)))
    grid_of(FOLDER / "moe.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"^    unidecouple (.*)$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert main(command.split()) == 0
    ((grid, order),) = asked
    assert (grid.scenarios["own"].model_name_or_path, order.only) == ("unified", ("seed=0",))


def test_the_index_has_every_page_and_recipe() -> None:
    text = (FOLDER / "README.md").read_text()
    assert sorted(set(re.findall(r"\((\w+)\.md\)", text))) == [page.stem for page in PAGES]
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (FOLDER / link).exists(), link
    recipes = {path.name for path in (ROOT / "recipes" / "method").glob("*.yaml")} - {"generation_only.yaml"}  # a control alone
    assert recipes <= set(re.findall(r"(\w+\.yaml)", text))
