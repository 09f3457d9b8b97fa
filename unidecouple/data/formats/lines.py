"""JSON: one record a line (jsonl), or one array of records (as LLaVA ships them)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from unidecouple.data.formats.entry import entry_type
from unidecouple.data.formats.reader import RangeReader
from unidecouple.data.formats.record import BadRecordError, Record

Parse = Callable[[object, str], Record]
"""From a JSON value and where it stands to the record."""

_BLANK: Final = " \t\r\n"


class JsonLines(RangeReader):
    """A jsonl file. Blank lines are skipped; line numbers count them."""

    def __init__(self, path: Path, parse: Parse, form: str | None = None, cache: Path | None = None) -> None:
        self._parse, self._form = parse, form
        super().__init__(path, form or "", cache)

    @property
    def format(self) -> str:
        """The forced format, or that of the first line that has one."""
        return self._form or next(filter(None, map(self._form_of, self._index[:1000].tolist())), "json")

    def ranges(self) -> Iterator[tuple[int, int, int]]:
        """See ``RangeReader``."""
        start = 0
        with self.path.open("rb") as file:
            for line, text in enumerate(file, start=1):
                if text.strip():
                    yield start, start + len(text), line
                start += len(text)

    def read_range(self, start: int, end: int, line: int) -> Record:
        """See ``RangeReader``."""
        where = f"{self.path}:{line}"
        return self._parse(self._value(start, end, where), where)

    def _value(self, start: int, end: int, where: str) -> object:
        with self.path.open("rb") as file:
            file.seek(start)
            text = file.read(end - start)
        try:
            return json.loads(text)
        except ValueError as error:  # of JSON or of UTF-8
            raise BadRecordError(where, f"no valid JSON: {error}") from error
        except RecursionError as error:
            raise BadRecordError(where, "JSON nested too deeply") from error

    def _form_of(self, row: list[int]) -> str | None:
        try:
            value = self._value(row[0], row[1], "")
        except BadRecordError:
            return None
        return entry_type(value) if isinstance(value, dict) else None


class JsonArray(JsonLines):
    """A file that is one JSON array. Where it breaks off, the rest is one bad record: nothing tells where the next would start."""

    def ranges(self) -> Iterator[tuple[int, int, int]]:
        """See ``RangeReader``.

        As Latin-1 every byte is a character, so characters are counted as bytes; JSON's own signs are ASCII in UTF-8.
        """
        text = self.path.read_bytes().decode("latin-1")
        decoder = json.JSONDecoder()
        place = _past_blanks(text, text.index("[") + 1)
        line, counted = 1, 0
        while text[place : place + 1] != "]":
            line, counted = line + text.count("\n", counted, place), place
            try:
                _, end = decoder.raw_decode(text, place)
            except (ValueError, RecursionError):
                yield place, len(text), line
                return
            yield place, end, line
            place = _past_blanks(text, end)
            if text[place : place + 1] == ",":
                place = _past_blanks(text, place + 1)
            elif text[place : place + 1] != "]":
                yield place, len(text), line
                return


def _past_blanks(text: str, place: int) -> int:
    while text[place : place + 1] and text[place] in _BLANK:
        place += 1
    return place
