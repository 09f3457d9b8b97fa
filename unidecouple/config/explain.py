"""Turns pydantic's errors into lines that a user can act on: source, place, cause, and the nearest known name."""

from __future__ import annotations

import difflib
import enum
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, Union

from unidecouple.config.layers import Layers, Location
from unidecouple.config.plugin_union import PluginUnion

_OFFERED = 3
"""Names, at most, that one unknown name may have meant."""


def explain(schema: type, layers: Layers, errors: Sequence[Mapping[str, Any]]) -> str:
    """One line for each of pydantic's errors, in its order.

    A value meant for a union is tried on every member, and each member complains. Only the gravest
    sort is reported: complaints of members that the value was not meant for are left out.
    """
    found = [_explain_one(schema, layers, error) for error in errors]
    gravest = min(sort for sort, _ in found)
    return "\n".join(dict.fromkeys(line for sort, line in found if sort is gravest))


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
            elsewhere = sorted(_places(schema, layers.values, str(at[-1])), key=len)
            line = f"unknown key {at[-1]!r} {_within(at[:-1])} ({_hint(at[-1], known, elsewhere)})"
    elif error["type"] == "missing":
        line = f"missing key {absent!r} {_within(at)}"
    elif error["type"] == "value_error":
        line = f"{_dotted(at)}{': ' if at else ''}{error['ctx']['error']}"
        at = (*at, *_named(str(error["ctx"]["error"])))  # not the file that holds the value's surroundings, but what set it
    elif error["type"] in ("literal_error", "enum"):
        allowed = _choices(_kinds_at(schema, at))
        sort = _Sort.WRONG_MEMBER if error["input"] in allowed else _Sort.WRONG
        line = f"unknown {_dotted(at)} {error['input']!r} ({_hint(error['input'], allowed)})"
    source = layers.source(at)
    return sort, f"{source}: {line}" if source else line


def _named(message: str) -> Location:
    """The place of the value that a complaint begins with, as "train.vision=-1 must be"; () if it begins with none."""
    found = re.match(r"[\w.]+(?==)", message)
    return tuple(int(step) if step.isdecimal() else step for step in found.group().split(".")) if found else ()


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
    kinds = union_members(schema)
    for step in at:
        kinds = [member for kind in kinds for inner in inner_types(kind, step) for member in union_members(inner)]
    return kinds


def union_members(kind: Any) -> list[Any]:
    """The types that a value of type ``kind`` may have: the members of a union, its own members' members included."""
    if typing.get_origin(kind) is Annotated:
        base, *marks = typing.get_args(kind)
        return union_members(next((mark.union() for mark in marks if isinstance(mark, PluginUnion)), base))
    if typing.get_origin(kind) not in (Union, types.UnionType):
        return [kind]
    return [inner for member in typing.get_args(kind) for inner in union_members(member)]


def inner_types(kind: Any, step: str | int) -> list[Any]:
    """The types allowed one ``step`` (a key or a position) inside a value of type ``kind``."""
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        return [hints[step]] if step in hints else []
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple and Ellipsis not in arguments:
        return list(arguments[step : step + 1]) if isinstance(step, int) else []
    return [argument for argument in arguments if argument is not Ellipsis][-1:]


def _keys(kinds: list[Any]) -> list[str]:
    return list(dict.fromkeys(field.name for kind in kinds if is_dataclass(kind) for field in fields(kind)))


def _places(kind: Any, values: Any, name: str, at: Location = (), above: tuple[Any, ...] = ()) -> Iterator[Location]:
    """Where keys called ``name`` may stand in ``kind``; of lists the first position, of mappings those in ``values``."""
    for member in union_members(kind):
        if member in above:  # a kind that holds itself
            continue
        if is_dataclass(member):
            steps: list[str | int] = [field.name for field in fields(member)]
            yield from ((*at, step) for step in steps if step == name)
        else:
            steps = list(values) if isinstance(values, dict) else [] if typing.get_origin(member) is dict else [0]
        for step in steps:
            inside = values.get(step) if isinstance(values, dict) else values[0] if isinstance(values, list) and values else None
            for inner in inner_types(member, step):
                yield from _places(inner, inside, name, (*at, step), (*above, member))


def _choices(kinds: list[Any]) -> list[Any]:
    """Values that the Literals and enums among ``kinds`` allow."""
    literal = [value for kind in kinds if typing.get_origin(kind) is Literal for value in typing.get_args(kind)]
    return literal + [member.value for kind in kinds if isinstance(kind, type) and issubclass(kind, enum.Enum) for member in kind]


def _hint(name: object, known: Sequence[object], places: Sequence[Location] = ()) -> str:
    """The nearest of ``known``, and the first of the ``places`` where it is known; all that is known here if there are none."""
    near = difflib.get_close_matches(str(name), [str(value) for value in known], n=1)
    found = [repr(_dotted(place)) + (" at the top level" if len(place) == 1 else "") for place in places]
    meant = [*map(repr, near), *found][:_OFFERED]
    return f"did you mean {' or '.join(meant)}?" if meant else f"known: {', '.join(map(str, known)) or 'none'}"


def _dotted(at: Location) -> str:
    return ".".join(map(str, at))


def _within(at: Location) -> str:
    return f"in {_dotted(at)}" if at else "at the top level"
