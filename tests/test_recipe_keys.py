"""docs/recipes.md describes every key that a recipe may have, as the code has it today."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from docs import recipe_keys
from docs.recipe_keys import PAGE, meanings, reached, refreshed, section
from unidecouple.methods.gradient import GRADIENTS
from unidecouple.methods.stage import PARTS
from unidecouple.methods.structure import STRUCTURES


@dataclass(frozen=True)
class Example:
    """What it is.

    More of it.

    Attributes:
        first, second: two | of a kind,
            in ``units``.
        third: a list.
    """

    kind: Literal["example"] = "example"
    first: int = 1
    second: int | None = None
    third: tuple[Literal["a", "b"], ...] = ("a",)


@dataclass(frozen=True)
class Forgotten:
    """One key has no line.

    Attributes:
        listed: has its line.
    """

    listed: bool = True
    unlisted: list[int] = field(default_factory=list)


def test_the_page_is_that_of_today_s_code() -> None:
    assert refreshed(PAGE.read_text()) == PAGE.read_text(), "python docs/recipe_keys.py mends the tables"


def test_it_reaches_every_strategy_and_names_every_part() -> None:
    assert {*STRUCTURES, *GRADIENTS} <= set(reached())
    assert all(f"`{part}`" in PAGE.read_text().partition(recipe_keys.MARK)[0] for part in PARTS)


def test_links_have_their_headings() -> None:
    headings = {section(kind).partition("\n")[0] for kind in reached()}
    assert len(headings) == len(reached())
    for name in ("### RunConfig", "### kind: ta_moe", "### kind: pcgrad"):
        assert name in headings


def test_a_table_worked_out_by_hand() -> None:
    head = "### kind: example\n\nWhat it is.\n\n| key | type | default | meaning |\n|---|---|---|---|\n"
    both = "| `first`, `second` | whole number; whole number or null | `1`; `null` | two \\| of a kind, in `units`. |\n"
    assert section(Example) == head + both + "| `third` | list of `a` or `b` | `[a]` | a list. |\n"


def test_a_key_without_its_line_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Forgotten: its keys are \['listed', 'unlisted'\], 'Attributes:' describes \['listed'\]"):
        meanings(Forgotten)
