"""Turns what pydantic found into lines that a user can act on: source, place, cause, and the nearest known name."""

from __future__ import annotations

import difflib
import enum
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union

from unidecouple.config.layers import Layers, Location


def explain(schema: type, layers: Layers, errors: Sequence[Mapping[str, Any]]) -> str:
    """One line for each of pydantic's errors, in its order.

    A value meant for a union is tried on every member, and each member complains. Only complaints of the gravest sort are told,
    so that members the value was not meant for are silent.
    """
    told = [_explain_one(schema, layers, error) for error in errors]
    gravest = min(sort for sort, _ in told)
    return "\n".join(dict.fromkeys(line for sort, line in told if sort is gravest))


class _Sort(enum.IntEnum):
    WRONG = 0
    WRONG_TOGETHER = 1
    """A key that another member of the union has."""
    WRONG_MEMBER = 2
    """A literal that another member of the union allows."""


def _explain_one(schema: type, layers: Layers, error: Mapping[str, Any]) -> tuple[_Sort, str]:
    at, absent = _place(layers.values, error["loc"])
    sort, line = _Sort.WRONG, f"{_dotted(at)}={error['input']!r}: {error['msg'][:1].lower()}{error['msg'][1:]}"
    if error["type"] == "unexpected_keyword_argument":
        known = _keys(_kinds_at(schema, at[:-1]))
        if at[-1] in known:
            sort, line = _Sort.WRONG_TOGETHER, f"key {at[-1]!r} does not go with the other keys {_within(at[:-1])}"
        else:
            line = f"unknown key {at[-1]!r} {_within(at[:-1])} ({_hint(at[-1], known)})"
    elif error["type"] == "missing":
        line = f"missing key {absent!r} {_within(at)}"
    elif error["type"] == "value_error":
        line = f"{_dotted(at)}{': ' if at else ''}{error['ctx']['error']}"
    elif error["type"] in ("literal_error", "enum"):
        allowed = _choices(_kinds_at(schema, at))
        sort = _Sort.WRONG_MEMBER if error["input"] in allowed else _Sort.WRONG
        line = f"unknown {_dotted(at)} {error['input']!r} ({_hint(error['input'], allowed)})"
    source = layers.source(at)
    return sort, f"{source}: {line}" if source else line


def _place(values: Any, location: Iterable[str | int]) -> tuple[Location, str | int | None]:
    """Part of pydantic's location that exists in the values, and the last step that does not: a missing key.

    Its locations also name the members of unions, which are no part of the values.
    """
    at: list[str | int] = []
    absent: str | int | None = None
    for step in location:
        exists = isinstance(step, int) if isinstance(values, list) else isinstance(values, dict) and step in values
        if exists:
            values = values[step]
            at.append(step)
        else:
            absent = step
    return tuple(at), absent


def _kinds_at(schema: Any, at: Location) -> list[Any]:
    """Types that ``schema`` allows at ``at``, over all members of unions."""
    kinds = _members(schema)
    for step in at:
        kinds = [member for kind in kinds for inner in _inner(kind, step) for member in _members(inner)]
    return kinds


def _members(kind: Any) -> list[Any]:
    if typing.get_origin(kind) not in (Union, types.UnionType):
        return [kind]
    return [inner for member in typing.get_args(kind) for inner in _members(member)]


def _inner(kind: Any, step: str | int) -> list[Any]:
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return [hints[step]] if step in hints else []
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple and Ellipsis not in arguments:
        return list(arguments[step : step + 1]) if isinstance(step, int) else []
    return [argument for argument in arguments if argument is not Ellipsis][-1:]


def _keys(kinds: list[Any]) -> list[str]:
    return list(dict.fromkeys(field.name for kind in kinds if is_dataclass(kind) for field in fields(kind)))


def _choices(kinds: list[Any]) -> list[Any]:
    """Values that the Literals and enums among ``kinds`` allow."""
    literal = [value for kind in kinds if typing.get_origin(kind) is Literal for value in typing.get_args(kind)]
    return literal + [member.value for kind in kinds if isinstance(kind, type) and issubclass(kind, enum.Enum) for member in kind]


def _hint(name: object, known: Sequence[object]) -> str:
    near = difflib.get_close_matches(str(name), [str(value) for value in known], n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(map(str, known)) or 'none'}"


def _dotted(at: Location) -> str:
    return ".".join(map(str, at))


def _within(at: Location) -> str:
    return f"in {_dotted(at)}" if at else "at the top level"
