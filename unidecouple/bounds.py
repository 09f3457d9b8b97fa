"""Numbers of a configuration that must lie in a range: what lies outside is refused by its name and value, before any work."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any


def at_least(least: float, config: object, *names: str) -> None:
    """Refuse fields ``names`` of ``config`` that are below ``least``, infinite or no number.

    A field may also be None, which is left alone, or a mapping or tuple, of which every value is held against the bound.

    Raises:
        ValueError: one is; with its name, its value and the range.
    """
    _check(config, names, lambda value: value >= least, f"at least {least}")


def above(bound: float, config: object, *names: str) -> None:
    """As ``at_least``, where ``bound`` itself is refused, too."""
    _check(config, names, lambda value: value > bound, f"above {bound}")


def between(least: float, most: float, config: object, *names: str) -> None:
    """As ``at_least``, up to ``most``; both ends are allowed."""
    _check(config, names, lambda value: least <= value <= most, f"from {least} to {most}")


def finite(config: object, *names: str) -> None:
    """As ``at_least``, without a bound."""
    _check(config, names, lambda value: True, "a finite number")


def _check(config: object, names: tuple[str, ...], fits: Callable[[float], bool], allowed: str) -> None:
    for name in names:
        for said, value in _numbers(name, getattr(config, name)):
            if not (math.isfinite(value) and fits(value)):
                raise ValueError(f"{said}={value} must be {allowed}")


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """The numbers in ``value``, each with its place."""
    if isinstance(value, Mapping):
        yield from ((f"{name}.{key}", part) for key, part in value.items())
    elif isinstance(value, tuple):
        yield from ((f"{name}.{place}", part) for place, part in enumerate(value))
    elif value is not None:
        yield name, value
