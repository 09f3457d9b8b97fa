"""Bounds on a configuration's numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from unidecouple import bounds


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
