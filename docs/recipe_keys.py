"""Writes the tables of ``docs/recipes.md`` from the dataclasses that recipes fill: ``python docs/recipe_keys.py``."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from unidecouple.compare.plan import Comparison
from unidecouple.config import plain
from unidecouple.config.explain import inner_types, union_members
from unidecouple.files import write_text_atomic
from unidecouple.run import RunConfig

PAGE = Path(__file__).with_name("recipes.md")
MARK = "<!-- keys, written by docs/recipe_keys.py -->\n"
_PLAIN = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null", Path: "path"}


def refreshed(text: str) -> str:
    """The page with its tables as the code has them today."""
    head, mark, _ = text.partition(MARK)
    return head + mark + "".join(f"\n{section(kind)}" for kind in reached())


def reached() -> list[type]:
    """Every dataclass that a recipe of a run, or of a grid, may fill, each after the first that holds it."""
    found: dict[type, None] = {}

    def walk(hint: Any) -> None:
        if is_dataclass(hint) and isinstance(hint, type):
            if hint in found:
                return
            found[hint] = None
            for name in get_type_hints(hint):
                for inner in inner_types(hint, name):
                    walk(inner)
            return
        for inner in get_args(hint) if get_origin(hint) is not Annotated else union_members(hint):
            walk(inner)

    walk(RunConfig)
    walk(Comparison)
    return list(found)


def section(kind: type) -> str:
    """Heading, first sentence and table of ``kind``; without a table where it has no keys."""
    summary = (inspect.getdoc(kind) or "").partition("\n\n")[0]
    rows = "".join(_rows(kind))
    table = f"\n| key | type | default | meaning |\n|---|---|---|---|\n{rows}" if rows else ""
    return f"### {_name(kind)}\n\n{_markdown(summary)}\n{table}"


def meanings(kind: type) -> dict[tuple[str, ...], str]:
    """The texts of the docstring's "Attributes:", by the keys that each describes.

    Raises:
        ValueError: a key has no text there, or a text no key.
    """
    part = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w[\w, ]*): (.*(?:\n {5,}.*)*)", part, re.MULTILINE)
    described = {tuple(names.split(", ")): _markdown(text) for names, text in entries}
    known, named = list(_keys(kind)), [name for names in described for name in names]
    if set(known) != set(named):
        raise ValueError(f"{kind.__name__}: its keys are {sorted(known)}, 'Attributes:' describes {sorted(named)}")
    return described


def _rows(kind: type) -> Iterator[str]:
    hints, keys = get_type_hints(kind, include_extras=True), _keys(kind)
    for names, meaning in meanings(kind).items():
        cells = (
            ", ".join(f"`{name}`" for name in names),
            _joined([_type(hints[name]) for name in names]),
            _joined([_default(keys[name]) for name in names]),
            meaning.replace("|", r"\|"),
        )
        yield f"| {' | '.join(cells)} |\n"


def _joined(cells: list[str]) -> str:
    return cells[0] if len(set(cells)) == 1 else "; ".join(cells)


def _keys(kind: type) -> dict[str, Field[Any]]:
    return {one.name: one for one in fields(kind) if one is not _chosen_by(kind)}


def _chosen_by(kind: type) -> Field[Any] | None:
    """The field by which a strategy is chosen; a ``kind`` without a default is a key as others are."""
    return next((one for one in fields(kind) if one.name == "kind" and one.default is not MISSING), None)


def _name(kind: type) -> str:
    """What the page calls it: a strategy by its ``kind``."""
    chosen = _chosen_by(kind)
    return f"kind: {chosen.default}" if chosen else kind.__name__


def _type(hint: Any) -> str:
    inner = get_args(hint)
    if get_origin(hint) is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if get_origin(hint) is Annotated:
        return " or ".join(_type(one) for one in union_members(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_type(one) for one in inner)
    if get_origin(hint) in (tuple, list):
        return f"list of {_type(inner[0])}"
    if get_origin(hint) in (dict, Mapping):
        return f"map of names to {_type(inner[1])}"
    if is_dataclass(hint) and isinstance(hint, type):
        name = _name(hint)
        return f"[{name}](#{name.lower().replace(': ', '-')})"
    return _PLAIN[hint]


def _default(one: Field[Any]) -> str:
    if one.default is MISSING and one.default_factory is MISSING:
        return "required"
    value = one.default if one.default_factory is MISSING else one.default_factory()
    if is_dataclass(value) and not isinstance(value, type):
        kind = getattr(value, "kind", None)
        return f"`{{kind: {kind}}}`" if kind else "its defaults"
    if isinstance(value, tuple) and any(map(is_dataclass, value)):
        return "one, of its defaults"
    return f"`{_yaml(plain(value))}`"


def _yaml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_yaml(key)}: {_yaml(inner)}' for key, inner in value.items())}}}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value) or '""'


def _markdown(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")


if __name__ == "__main__":
    write_text_atomic(PAGE, refreshed(PAGE.read_text(encoding="utf-8")))
