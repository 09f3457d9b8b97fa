"""Bounds on a configuration's numbers."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from unidecouple import bounds
from unidecouple.compare.merge import Decoupling
from unidecouple.compare.plan import Comparison
from unidecouple.data.settings import Source
from unidecouple.methods.objective.aia import AiaBand
from unidecouple.run import RunConfig
from unidecouple.world.scratch import Scratch


@dataclass(frozen=True)
class Numbers:
    one: float | None = 0.0
    many: tuple[int, ...] = ()
    named: dict[str, float] = field(default_factory=dict)


@pytest.mark.parametrize("value", [0, 1, 2.5, None])
def test_what_lies_inside_passes(value: float | None) -> None:
    numbers = Numbers(value, (0, 3), {"a": 0.0})
    bounds.at_least(0, numbers, "one", "many", "named")
    bounds.between(0, 3, numbers, "one", "many", "named")
    bounds.above(-1, numbers, "one", "many", "named")
    bounds.finite(numbers, "one")


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (Numbers(-1), r"^one=-1 must be at least 0$"),
        (Numbers(float("nan")), r"^one=nan must"),
        (Numbers(float("inf")), r"^one=inf must"),
        (Numbers(many=(0, -2)), r"^many\.1=-2 must"),
        (Numbers(named={"a": 1, "b": -3}), r"^named\.b=-3 must"),
    ],
)
def test_what_lies_outside_is_named(numbers: Numbers, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        bounds.at_least(0, numbers, "one", "many", "named")


def test_ends() -> None:
    with pytest.raises(ValueError, match="one=0 must be above 0"):
        bounds.above(0, Numbers(0), "one")
    with pytest.raises(ValueError, match=r"one=1\.5 must be from 0 to 1"):
        bounds.between(0, 1, Numbers(1.5), "one")
    with pytest.raises(ValueError, match="one=nan must be a finite number"):
        bounds.finite(Numbers(float("nan")), "one")


def recipe_classes(hint: Any, found: set[type]) -> set[type]:
    """Every dataclass that recipes can spell, from the type ``hint`` down."""
    if isinstance(hint, type) and is_dataclass(hint) and hint not in found:
        found.add(hint)
        for part in get_type_hints(hint).values():
            recipe_classes(part, found)
    for part in get_args(hint):
        recipe_classes(part, found)
    return found


RECIPES = {
    Comparison: {"name": "x"},
    AiaBand: {"until": 1.0, "delta": 1.0, "target": 0.5},
    Source: {"path": Path("x")},
    Decoupling: {"full": True},
}
NUMBERS = [
    (kind, entry.name)
    for kind in sorted(
        set().union(*(recipe_classes(kind, set()) for kind in (Comparison, RunConfig, Scratch))), key=lambda kind: kind.__name__
    )
    for entry in fields(kind)
    if get_type_hints(kind)[entry.name] in (float, float | None, float | int)
]


@pytest.mark.parametrize(("kind", "name"), NUMBERS, ids=lambda part: part if isinstance(part, str) else part.__name__)
def test_no_number_of_a_recipe_may_be_nan_or_infinite(kind: type, name: str) -> None:
    needed = {entry.name for entry in fields(kind) if entry.default is MISSING and entry.default_factory is MISSING}
    given = dict.fromkeys(needed, 1) | RECIPES.get(kind, {})
    values = [math.nan, -math.inf] + ([] if (kind, name) == (RunConfig, "max_grad_norm") else [math.inf])  # infinite is no clipping
    for value in values:
        with pytest.raises(ValueError, match=rf"{name}|{kind.__name__}"):
            kind(**{**given, name: value})


@pytest.mark.parametrize("value", ["1", True, [1], 10**400])
def test_what_is_no_finite_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^one=.* must be a finite number$"):
        bounds.finite(Numbers(value), "one")


def test_a_message_shows_the_start_of_a_long_value() -> None:
    assert bounds.short("x" * 99) == "'" + "x" * 39 + "…"
    assert bounds.short(10**5000) == "a number of thousands of digits"
    assert bounds.short(1.5) == "1.5"
