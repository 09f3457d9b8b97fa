"""Merging methods as options of the command line: a value for each field, by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from unidecouple.methods.merging import MERGINGS, Merging

VALIDATION: Final = "validation"
"""``--scale validation``: chosen on held-out data."""
_START: Final = {"start": "scale"}
"""Fields that are another option."""


def method_of(kind: str, given: Mapping[str, Any]) -> Merging:
    """The method ``kind`` with the options ``given``; None is left out.

    Raises:
        ValueError: an option is not one of the method's, or a value is out of its range.
    """
    (chosen,) = (member for member in MERGINGS if member.kind == kind)
    names = _names(chosen)
    values: dict[str, Any] = {}
    for option, value in given.items():
        if value is None:
            continue
        if option not in names:
            raise ValueError(f"--{option.replace('_', '-')} has no effect with --method {kind}: leave it out")
        values[names[option]] = _scale(kind, value) if option == "scale" else value
    return chosen(**values)


def words(method: Merging) -> list[str]:
    """Options of ``unidecouple merge`` that mean ``method``."""
    found = ["--method", method.kind]
    for option, name in _names(type(method)).items():
        value = getattr(method, name)
        found += [f"--{option.replace('_', '-')}", VALIDATION if value is None else str(value)]
    return found


def _names(member: type[Merging]) -> dict[str, str]:
    """Option -> field."""
    return {_START.get(field.name, field.name): field.name for field in fields(member) if field.name != "kind"}


def _scale(kind: str, value: float | str) -> float | None:
    if value != VALIDATION:
        return float(value)
    if kind in ("adamerging", "concrete", "doge"):
        raise ValueError(f"--scale {VALIDATION} is for methods whose change is linear in it, and {kind} is not: give a number")
    return None
