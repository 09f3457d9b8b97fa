"""Pages of experiments have a verdict and their parts, are listed, and name what exists; test_refresh.py checks figures."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from unidecouple.cli import _parser

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "experiments"
INDEX = FOLDER / "README.md"
PAGES = sorted(path for path in FOLDER.glob("*.md") if path != INDEX)
COMMANDS = [
    (page.stem, command)
    for page in PAGES
    for command in re.findall(r"^    ((?:unidecouple|make) .*)$", page.read_text(), re.MULTILINE)
]
MAKE_TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@every_page
def test_a_page_has_its_parts(page: Path) -> None:
    text = page.read_text()
    parts = [text.index(f"**{part}**") for part in ("Question.", "Setup.", "What follows.")]
    assert parts == sorted(parts)
    assert re.search(r"^\d{4}-\d\d-\d\d.*, commits? [0-9a-f]{6,}", text, re.MULTILINE), "date and commit"
    prose = [line for line in text.splitlines() if not line.startswith("|")]
    assert len(prose) <= 60


@every_page
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (FOLDER / link).exists(), link
    for named in re.findall(r"`((?:results|recipes)/[\w./-]+|train/\w+\.py)`", text):
        assert (ROOT / named).exists() or (ROOT / "unidecouple" / named).exists(), named


def test_the_index_lists_every_title() -> None:
    listed = re.findall(r"^- \[(.+)\]\(([\w-]+\.md)\)$", INDEX.read_text(), re.MULTILINE)
    titles = [(page.read_text().splitlines()[0].removeprefix("# "), page.name) for page in PAGES]
    assert sorted(listed) == sorted(titles)
    assert len({title for title, _ in titles}) == len(titles)


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}-{at}" for at, (page, _) in enumerate(COMMANDS)])
def test_a_command_is_understood(page: str, command: str) -> None:
    """Not run: these take minutes to hours. Options are parsed, and recipes and targets exist."""
    words = shlex.split(re.sub(r" +\(.*\)$", "", command))
    if words[0] == "make":
        assert words[1] in MAKE_TARGETS
        return
    assert callable(_parser().parse_args(words[1:]).command)
    assert all((ROOT / word).is_file() for word in words if word.startswith("recipes/"))
