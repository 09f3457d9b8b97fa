"""Values merged from YAML files and overrides, and the memory of where each came from.

Mappings merge key by key; anything else, lists included, is replaced whole. So is a mapping whose ``kind`` changes: settings of
one kind mean nothing to another. A file may start from others: its top-level key ``base`` names one or a list of them, relative
to its own folder, and they are merged before it. Packaged recipes may be given by name (``packaged.py``).
"""

from __future__ import annotations

import copy
import difflib
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unidecouple.config.packaged import packaged_recipe, recipe_names, recipe_path
from unidecouple.config.yaml12 import ConfigError, parse
from unidecouple.inputs import special_file

Location = tuple[str | int, ...]
"""Keys and list positions from the top of a configuration to a value in it."""

BASE_KEY = "base"
"""Names the files that a file starts from; so no schema has a top-level key of this name."""

_MOST_BYTES = 1 << 20
"""Of one file."""
_MOST_FILES = 100
"""That one configuration is merged from: files may each start from several, which start from several."""
_DEEPEST = 60
"""Keys of an override."""
_LONGEST = 200
"""Characters of an override that messages show."""

KIND_KEY = "kind"
"""Names the member of a union that a mapping describes."""


Moves = Mapping[Location, tuple[Location, str]]
"""Old location of a key -> new one, and the ``kind`` that its mapping gets there ("" for none)."""


class Layers:
    """What was merged so far. Keys that have moved are read in each layer, so that the later of an old and a new one wins.

    Attributes:
        values: the merged mapping.
        sources: file or override that set the value at a location; those nested in it have the same unless listed.
        moved: old locations that were read -> new location, and the first layer that has the old one.
    """

    def __init__(self, moves: Moves | None = None) -> None:
        self.values: dict[str, Any] = {}
        self.sources: dict[Location, str] = {}
        self.moved: dict[Location, tuple[Location, str]] = {}
        self._moves = moves or {}
        self._files = 0

    def add_file(self, path: Path, starters: tuple[Path, ...] = ()) -> None:
        """Merge the file's bases, then the file. ``starters`` are the files that start from this one.

        Raises:
            ConfigError: a file is missing, broken, no mapping, or starts from itself.
        """
        path = recipe_path(path)
        real = Path(os.path.realpath(path))  # Path.resolve raises on a loop of links
        if real in starters:
            raise ConfigError(f"{path} includes itself through '{BASE_KEY}': remove the entry from one of the files")
        self._files += 1
        if self._files > _MOST_FILES:
            raise ConfigError(f"{path}: '{BASE_KEY}' includes more than {_MOST_FILES} files: list each base once")
        content = _read(path)
        bases = content.pop(BASE_KEY, [])
        names = [bases] if isinstance(bases, str) else bases
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{path}: '{BASE_KEY}' must be a file name or a list of file names, not {bases!r}")
        for name in names:
            beside = path.parent / name
            self.add_file(beside if beside.exists() else packaged_recipe(name) or beside, (*starters, real))
        self.add_values(content, str(path))

    def add_values(self, values: Mapping[str, Any], source: str) -> None:
        """Merge ``values``, which came from ``source``."""
        self._merge(self.values, self._with_moved_keys(values, source), (), source)
        self.sources[()] = source

    def add_override(self, override: str) -> None:
        """Merge one "dotted.key=value", its value in YAML.

        Raises:
            ConfigError: it has another form, or steps outside a list.
        """
        dotted, equals, text = override.partition("=")
        keys: list[Any] = dotted.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f"override {override!r} must have the form dotted.key=value")
        if len(keys) > _DEEPEST:
            raise ConfigError(f"override {override[:40]!r}… is nested {len(keys)} keys deep, more than {_DEEPEST}")
        source = f"override {override!r}" if len(override) <= _LONGEST else f"override {override[:_LONGEST]!r}…"
        value = parse(text, source)
        for old, (new, kind) in self._moves.items():
            if old == tuple(keys[: len(old)]) and len(keys) > len(old):
                self.moved.setdefault(old, (new, source))
                if kind:
                    self._merge(self.values, _nest([*new, KIND_KEY], kind), (), source)
                keys = [*new, *keys[len(old) :]]
            elif old[: len(keys)] == tuple(keys):  # the value holds the key
                self._merge(self.values, self._with_moved_keys(_nest(keys, value), source), (), source)
                return
        self._assign(self.values, keys, value, (), source)

    def source(self, at: Location) -> str | None:
        """What set the value at ``at``, or the nearest value around it."""
        around = (at[:size] for size in range(len(at), -1, -1))
        return next((self.sources[place] for place in around if place in self.sources), None)

    def _with_moved_keys(self, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        out = copy.deepcopy(dict(values))
        for old, (new, kind) in self._moves.items():
            value = _take(out, old)
            if value is not None:  # an old key that is null was not set
                self.moved.setdefault(old, (new, source))
                there = {KIND_KEY: kind, **value} if kind and isinstance(value, dict) else value
                self._merge(out, _nest(list(new), there), (), source)
        return out

    def _merge(self, target: dict[str, Any], layer: Mapping[str, Any], at: Location, source: str) -> None:
        if {KIND_KEY} <= target.keys() & layer.keys() and target[KIND_KEY] != layer[KIND_KEY]:
            target.clear()
        for key, value in layer.items():
            if isinstance(value, dict) and isinstance(target.get(key), dict):
                self._merge(target[key], value, (*at, key), source)
            else:
                target[key] = value
                self._note((*at, key), source)

    def _assign(self, node: Any, keys: list[Any], value: Any, at: Location, source: str) -> None:
        if isinstance(node, list):
            self._assign_in_list(node, keys, value, at, source)
        elif len(keys) > 1 and isinstance(node.get(keys[0]), dict | list):
            self._assign(node[keys[0]], keys[1:], value, (*at, keys[0]), source)
        else:
            self._merge(node, _nest(keys, value), at, source)

    def _assign_in_list(self, items: list[Any], keys: list[Any], value: Any, at: Location, source: str) -> None:
        if not keys[0].isdecimal() or int(keys[0]) >= len(items):
            where = ".".join(map(str, at))
            raise ConfigError(f"{source}: {where} is a list of {len(items)} entries without an entry {keys[0]!r} (the first is 0)")
        position = int(keys[0])
        place: Location = (*at, position)
        if len(keys) > 1 and isinstance(items[position], dict | list):
            self._assign(items[position], keys[1:], value, place, source)
        elif isinstance(items[position], dict) and isinstance(value, dict):
            self._merge(items[position], value, place, source)
        else:
            items[position] = _nest(keys[1:], value)
            self._note(place, source)

    def _note(self, at: Location, source: str) -> None:
        self.sources = {place: origin for place, origin in self.sources.items() if place[: len(at)] != at}
        self.sources[at] = source


def _nest(keys: Sequence[str | int], value: Any) -> Any:
    return {keys[0]: _nest(keys[1:], value)} if keys else value


def _take(values: dict[str, Any], at: Location) -> Any:
    """Remove the value at ``at`` and return it; None where there is none."""
    node: Any = values
    for step in at[:-1]:
        node = node.get(step) if isinstance(node, dict) else None
    return node.pop(at[-1], None) if isinstance(node, dict) else None


def _read(path: Path) -> dict[str, Any]:
    if kind := special_file(path):
        raise ConfigError(f"{path} is {kind}, not a file: write the recipe to a file and give that")
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # a pipe would block, a device never end
            what = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise ConfigError(f"{path} is {what}, not a file: give a YAML file")
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ConfigError(f"{path} has more than {_MOST_BYTES:,} bytes: give a YAML file of settings")
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(_missing(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a text file: {error}") from None
    values = parse(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must contain keys and values, not a {type(values).__name__}")
    return values


def _missing(path: Path) -> str:
    if not path.parent.is_dir():
        near = difflib.get_close_matches(path.as_posix(), recipe_names(), n=1)
        hint = f"did you mean the packaged recipe {near[0]}?" if near else "`unidecouple recipes list` prints the packaged recipes"
        return f"{path} does not exist, nor does the folder {path.parent} ({hint})"
    there = {entry.stem: entry.name for entry in sorted(path.parent.iterdir()) if entry.suffix in {".yaml", ".yml"}}
    near = difflib.get_close_matches(path.stem, there, n=1)
    known = ", ".join(there.values()) or "none"
    hint = f"did you mean {path.parent / there[near[0]]}?" if near else f"YAML files in {path.parent}: {known}"
    return f"{path} does not exist ({hint})"
