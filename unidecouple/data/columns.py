"""Column maps: which of a user's columns (keys of JSON, columns of tables) stand for the names that the formats have."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Final

QUESTIONS: Final = ("question", "instruction", "query")
ANSWERS: Final = ("answer", "output", "response", "completion")
PROMPTS: Final = ("prompt", "caption", "text")
PICTURES: Final = ("image", "images")
SOURCES: Final = ("source_image", "source_images")
"""Images that the images of a flat record are generated from."""
OPTIONAL: Final = (*PICTURES, *SOURCES, "input", "system", "history", "task")
"""What a record may lack."""
NAMES: Final = ("messages", "conversations", *QUESTIONS, *ANSWERS, *PROMPTS, *OPTIONAL)
"""What a column can stand for."""


def check_columns(columns: Mapping[str, str]) -> None:
    """Refuse a map whose keys are none of ``NAMES``, or that names one column twice.

    Raises:
        ValueError: with the nearest name.
    """
    for name, column in columns.items():
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"columns: {name!r} is not a field name. {hint}The map goes from one of {', '.join(NAMES)} "
                "to your column, as in {question: q, answer: a, image: path}"
            )
        if not column or list(columns.values()).count(column) > 1:
            raise ValueError(f"columns: {column!r} is given for {name!r} and for another name: give each its own column")


def parse_columns(text: str) -> dict[str, str]:
    """The map of ``question=q,answer=a``.

    Raises:
        ValueError: as ``check_columns``; or an entry without "=".
    """
    pairs = [entry.partition("=") for entry in text.split(",") if entry.strip()]
    if not pairs or not all(sign for _, sign, _ in pairs):
        raise ValueError(f"{text!r} is not a column map: write it as question=q,answer=a,image=path")
    columns = {name.strip(): column.strip() for name, _, column in pairs}
    if len(columns) < len(pairs):
        raise ValueError(f"{text!r} gives a name twice")
    check_columns(columns)
    return columns


def rename(entry: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    """``entry`` with our names in place of a user's columns; keys that are not mapped stay.

    Raises:
        KeyError: a column that no record may lack is missing; the message says which columns there are.
    """
    if not columns:
        return entry
    missing = [column for name, column in columns.items() if column not in entry and name not in OPTIONAL]
    if missing:
        there = ", ".join(sorted(map(str, entry))[:8])
        raise KeyError(f"there is no column {missing[0]!r}, which columns names; there are {there or 'none'}")
    mapped = {name: entry[column] for name, column in columns.items() if column in entry}
    taken = {*columns.values(), *columns}
    return {**{key: value for key, value in entry.items() if key not in taken}, **mapped}
