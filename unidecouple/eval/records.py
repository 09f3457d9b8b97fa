"""Records of a benchmark's files, each with its place: jsonl or a JSON array, in UTF-8, with or without a byte order mark.

Every benchmark reads its files here, so that one rule holds for all. A line ends with a line feed only: U+2028 and U+0085 belong to
the text. A value that cannot be used is refused with file and line, never passed over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

from unidecouple.inputs import quoted

YesNo = Literal["yes", "no"]
_BOM: Final = b"\xef\xbb\xbf"
_YES_NO: Final[dict[str, YesNo]] = {"yes": "yes", "true": "yes", "1": "yes", "no": "no", "false": "no", "0": "no"}


@dataclass(frozen=True)
class BenchmarkRecord:
    """One record.

    Attributes:
        where: file and line (or the number in an array), for messages.
        values: by key; null counts as absent.
    """

    where: str
    values: Mapping[str, Any]

    def fail(self, reason: str) -> NoReturn:
        """Raise ``ValueError`` with the record's place."""
        raise ValueError(f"{self.where}: {reason}")

    def has(self, key: str) -> bool:
        """Whether ``key`` is there and not null."""
        return self.values.get(key) is not None

    def __getitem__(self, key: str) -> Any:
        """Return the value of ``key``.

        Raises:
            ValueError: it is missing or null.
        """
        if not self.has(key):
            self.fail(f"{key!r} is {'null' if key in self.values else 'missing'}")
        return self.values[key]

    def text(self, key: str) -> str:
        """Return a text that is not blank and can be written as UTF-8."""
        value = self[key]
        if not isinstance(value, str) or not value.strip():
            self.fail(f"{key!r} is {quoted(value)}; give a text that is not empty")
        return self._unicode(key, value)

    def plain(self, key: str, value: object) -> str:
        """Return ``value`` of ``key`` as the text of an answer: 2 and 2.0 are "2", true is "yes", false is "no"."""
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, int | float) and math.isfinite(value):
            return _number(value)
        if not isinstance(value, str) or not value.strip():
            self.fail(f"{key!r} is {quoted(value)}; give a text that is not empty, a number, true or false")
        return self._unicode(key, value)

    def name(self, key: str) -> str:
        """Return an id: a text or a whole number."""
        value = self[key]
        if isinstance(value, bool) or not isinstance(value, str | int):
            self.fail(f"{key!r} is {quoted(value)}; give a text or a whole number")
        return self.text(key) if isinstance(value, str) else _number(value)

    def count(self, key: str) -> int:
        """Return a whole number from 0 on."""
        value = self[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            self.fail(f"{key!r} is {quoted(value)}; give a whole number from 0 on")
        return value

    def yes_no(self, key: str) -> YesNo:
        """Return a label, by ``yes_no``."""
        label = yes_no(self[key])
        if label is None:
            self.fail(f"{key!r} is {quoted(self[key])}; give yes or no, true or false, 1 or 0")
        return label

    def listed(self, key: str, least: int = 1) -> list[Any]:
        """Return a list of at least ``least`` items."""
        value = self[key]
        if not isinstance(value, list) or len(value) < least:
            self.fail(f"{key!r} is {quoted(value)}; give a list" + (" that is not empty" if least else ""))
        return value

    def _unicode(self, key: str, value: str) -> str:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            at = error.start
            self.fail(f"{key!r} holds half of a surrogate pair ({value[at]!a}) at character {at + 1}, which is no character")
        return value


def yes_no(value: object) -> YesNo | None:
    """Return "yes" for yes, true and 1, "no" for no, false and 0, else None.

    Letter case, surrounding white space and one full stop do not matter; JSON's true, false, 1 and 0 are read like the words.
    """
    if isinstance(value, int | float):
        value = _number(value)  # of a bool, "True" or "False"
    return _YES_NO.get(value.strip().casefold().removesuffix(".").strip()) if isinstance(value, str) else None


def read_records(path: Path, needed: Sequence[str] = ()) -> list[BenchmarkRecord]:
    """Return the objects of ``path``: one per line, blank lines skipped, or the items of one JSON array.

    Raises:
        ValueError: there are none; one is no JSON object, or lacks one of the keys ``needed``.
    """
    content = path.read_bytes().removeprefix(_BOM)
    rows = list(_array(content, path) if content.lstrip()[:1] == b"[" else read_lines(content, path))
    if not rows:
        raise ValueError(f"{path} has no records: is the file whole?")
    for row in rows:
        for key in needed:
            if key not in row.values:
                row.fail(f"{key!r} is missing; the file needs {', '.join(needed)}")
    return rows


def read_lines(content: bytes, path: Path) -> Iterator[BenchmarkRecord]:
    """Give the objects of the lines of ``content``; raises as ``read_records``."""
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            where = f"{path}:{number}"
            yield _row(_parsed(line, where), where)


def read_text_lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines of a text file that are not blank, with their numbers from 1; raises as ``read_records``."""
    try:
        text = path.read_bytes().removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no UTF-8: {error}") from error
    return [(number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def read_listed(path: Path, key: str) -> list[BenchmarkRecord]:
    """Return the objects listed under ``key`` of the one object in ``path``; raises as ``read_records``."""
    whole = _row(_parsed(path.read_bytes().removeprefix(_BOM), str(path)), str(path))
    return [_row(item, f"{path}: {key}[{number}]") for number, item in enumerate(whole.listed(key))]


def unique(rows: Sequence[BenchmarkRecord], names: Sequence[str], what: str) -> None:
    """Make sure that no two of ``rows`` have one name.

    Raises:
        ValueError: two have; both places are named.
    """
    first: dict[str, str] = {}
    for row, name in zip(rows, names, strict=True):
        if name in first:
            row.fail(f"{what} {quoted(name)} is that of {first[name]} too; answers are kept by it, so each needs another")
        first[name] = row.where


def _array(content: bytes, path: Path) -> Iterator[BenchmarkRecord]:
    for number, item in enumerate(_parsed(content, str(path)), 1):
        yield _row(item, f"{path}, item {number}")


def _parsed(content: bytes, where: str) -> Any:
    try:
        return json.loads(content.decode(), parse_constant=_no_number, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError(f"{where}: JSON nested too deeply") from error
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(f"{where}: no valid JSON: {error}; is the file whole?") from error


def _row(value: object, where: str) -> BenchmarkRecord:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: a JSON object is expected, not {quoted(value)}")  # noqa: TRY004 -- a user's mistake
    return BenchmarkRecord(where, value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key appears twice in one object")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _number(value: float) -> str:
    whole = isinstance(value, float) and math.isfinite(value) and value.is_integer()
    return str(int(value)) if whole else str(value)
