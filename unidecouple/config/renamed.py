"""Recipe keys of earlier versions: read under their new names, with a warning.

A configuration class that renamed keys has ``RENAMED_KEYS`` (old name -> new name). Where values move into another mapping, it has
``MOVED_KEYS`` (old dotted key -> new dotted key and the ``kind`` that its mapping gets, "" for none), or ``migrate_keys``. One that
renamed words has ``RENAMED_VALUES``: by key, old word -> new word, of the value or of a mapping's keys.
"""

from __future__ import annotations

import logging
import typing
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, Literal

from unidecouple.config.explain import inner_types, union_members
from unidecouple.config.layers import KIND_KEY, Layers, Location, Moves

_LOG = logging.getLogger("unidecouple.config")


def migrate(schema: type, layers: Layers) -> dict[str, Any]:
    """The merged values of ``layers`` with the keys of earlier versions renamed; each is reported once, with its source."""
    found: dict[Location, str] = {}
    values = _migrated(schema, layers.values, (), found)
    lines = [(source, old, _dotted(new)) for old, (new, source) in layers.moved.items() if _holds(values, new)]
    lines += [(layers.source(old) or "the defaults", old, new) for old, new in found.items()]
    for source, old, new in lines:
        _LOG.warning("%s: key %r is now %r; the old name will be an error in version 0.3", source, _dotted(old), new)
    return dict(values)


def moved_keys(schema: type, at: Location = ()) -> Moves:
    """The ``MOVED_KEYS`` of ``schema`` and of the configurations in it."""
    own: Mapping[str, tuple[str, str]] = getattr(schema, "MOVED_KEYS", {})
    found = {(*at, *old.split(".")): ((*at, *new.split(".")), kind) for old, (new, kind) in own.items()}
    for name, hint in typing.get_type_hints(schema).items():
        if isinstance(hint, type) and is_dataclass(hint):
            found |= moved_keys(hint, (*at, name))
    return found


def _holds(values: Any, at: Location) -> bool:
    return not at or (isinstance(values, Mapping) and at[0] in values and _holds(values[at[0]], at[1:]))


def _dotted(at: Location) -> str:
    return ".".join(map(str, at))


def _migrated(kind: Any, value: Any, at: Location, found: dict[Location, str]) -> Any:
    members = union_members(kind)
    if isinstance(value, Mapping):
        classes = [member for member in members if isinstance(member, type) and is_dataclass(member)]
        for member in classes:
            if len(classes) == 1 or _describes(member, value):
                value, renamed = _renamed(member, value)
                found.update({(*at, old): new for old, new in renamed.items()})
        return {key: _inside(members, key, one, at, found) for key, one in value.items()}
    if isinstance(value, list):
        return [_inside(members, place, one, at, found) for place, one in enumerate(value)]
    return value


def _inside(members: list[Any], step: str | int, value: Any, at: Location, found: dict[Location, str]) -> Any:
    kinds = [inner for member in members for inner in inner_types(member, step)]
    for kind in kinds:
        value = _migrated(kind, value, (*at, step), found)
    return value


def _describes(member: type, value: Mapping[str, Any]) -> bool:
    """Whether a mapping is meant for ``member``: of a union's members, the one whose ``kind`` it names."""
    hint = typing.get_type_hints(member).get(KIND_KEY)
    if typing.get_origin(hint) is not Literal:
        return True
    return value.get(KIND_KEY) in typing.get_args(hint)


def _renamed(member: type, value: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    if hasattr(member, "migrate_keys"):
        return member.migrate_keys(value)
    names: Mapping[str, str] = getattr(member, "RENAMED_KEYS", {})
    words: Mapping[str, Mapping[str, str]] = getattr(member, "RENAMED_VALUES", {})
    out: dict[str, Any] = {}
    old: dict[str, str] = {}
    for key, one in value.items():  # merged in the order of the layers, so the later of an old and a new name wins
        new = names.get(key, key)
        out[new] = _reworded(one, words.get(new, {}))
        if new != key or out[new] != one:
            old[key] = new if out[new] == one else f"{new}: {out[new]}"
    return (out, old) if old else (value, {})


def _reworded(value: Any, words: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {words.get(key, key): one for key, one in value.items()}
    return words.get(value, value) if isinstance(value, str) else value
