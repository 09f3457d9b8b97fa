"""Numbers of a configuration that must lie in a range: what lies outside is refused by its name and value, before any work."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_LONGEST = 40
"""Characters of a value that a message shows."""


def cut(text: str) -> str:
    """Return ``text`` for a message: at most its first 40 characters."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def short(value: object) -> str:
    """Return ``value`` for a message: a number as it is written, anything else as Python's literal, at most 40 characters."""
    try:
        return cut(str(value) if _is_number(value) else repr(value))
    except ValueError:  # a whole number of thousands of digits has no text in Python
        return "a number of thousands of digits"


def at_least(least: float, config: object, *names: str) -> None:
    """Refuse fields ``names`` of ``config`` that are below ``least``, infinite or no number.

    A field may also be None, which is left alone, or a mapping or tuple, of which every value is held against the bound.

    Raises:
        ValueError: one is; with its name, its value and the range.
    """
    _check(config, names, lambda value: value >= least, f"at least {least:g}")


def above(bound: float, config: object, *names: str, most: float = math.inf) -> None:
    """As ``at_least``, where ``bound`` itself is refused, too; up to ``most``."""
    allowed = f"above {bound:g}" + ("" if most == math.inf else f" and at most {most:g}")
    _check(config, names, lambda value: bound < value <= most, allowed)


def between(least: float, most: float, config: object, *names: str) -> None:
    """As ``at_least``, up to ``most``; both ends are allowed."""
    _check(config, names, lambda value: least <= value <= most, f"from {least:g} to {most:g}")


def whole(least: int, most: int, config: object, *names: str) -> None:
    """As ``between``, for whole numbers only."""

    def fits(value: Any) -> bool:
        return isinstance(value, numbers.Integral) and least <= int(value) <= most

    _check(config, names, fits, f"a whole number from {least} to {most}")


def finite(config: object, *names: str) -> None:
    """As ``at_least``, without a bound."""
    _check(config, names, lambda value: True, "a finite number")


def _check(config: object, names: tuple[str, ...], fits: Callable[[float], bool], allowed: str) -> None:
    for name in names:
        for said, value in _numbers(name, getattr(config, name)):
            if not (_is_number(value) and _is_finite(value) and fits(value)):
                raise ValueError(f"{said}={short(value)} must be {allowed}")


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float holds
        return False


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """The numbers in ``value``, each with its place."""
    if isinstance(value, Mapping):
        yield from ((f"{name}.{key}", part) for key, part in value.items())
    elif isinstance(value, tuple):
        yield from ((f"{name}.{place}", part) for place, part in enumerate(value))
    elif value is not None:
        yield name, value
