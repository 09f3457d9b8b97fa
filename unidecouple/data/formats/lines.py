"""JSON: one record a line (jsonl), or one array of records (as LLaVA ships them)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final

from unidecouple.data.columns import rename
from unidecouple.data.formats.entry import entry_type
from unidecouple.data.formats.reader import RangeReader
from unidecouple.data.formats.record import BadRecordError, Record

Parse = Callable[[object, str], Record]
"""From a JSON value and where it stands to the record."""

_BLANK: Final = " \t\r\n"
_CHUNK: Final = 1 << 20
_MARGIN: Final = 16
"""Characters before the end of what was read in which an error may be that of a cut value."""
LONGEST: Final = 1 << 28
"""Bytes of a record; more than that is a broken file."""


class JsonLines(RangeReader):
    """A jsonl file. Blank lines are skipped; line numbers count them."""

    def __init__(
        self,
        path: Path,
        parse: Parse,
        form: str | None = None,
        cache: Path | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        self._parse, self._form, self._columns = parse, form, columns or {}
        super().__init__(path, f"{form or ''} {sorted(self._columns.items())}", cache)

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
        if end - start > LONGEST:
            raise BadRecordError(where, f"{end - start:,} bytes without the end of a record: the file is broken from here on")
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
            return entry_type(rename(value, self._columns)) if isinstance(value, dict) else None
        except (BadRecordError, KeyError):
            return None


class JsonArray(JsonLines):
    """A file that is one JSON array. Where it breaks off, the rest is one bad record: nothing tells where the next would start."""

    def ranges(self) -> Iterator[tuple[int, int, int]]:
        """See ``RangeReader``; one record and ``_CHUNK`` bytes are held at a time."""
        with self.path.open("rb") as file:
            window = _Window(file)
            window.skip_past("[")
            while (sign := window.sign()) != "]":
                start, line = window.position, window.line
                if not sign or not window.skip_value():
                    yield start, self.path.stat().st_size, line
                    return
                yield start, window.position, line
                following = window.sign()
                if following == ",":
                    window.skip_past(",")
                elif following != "]":
                    yield window.position, self.path.stat().st_size, window.line
                    return


class _Window:
    """The text of a file from ``position`` on, read as it is needed.

    As Latin-1 every byte is a character, so characters are counted as bytes; JSON's own signs are ASCII in UTF-8.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._text, self._at, self._start = file, "", 0, 0
        self._decoder = json.JSONDecoder()
        self.line = 1

    @property
    def position(self) -> int:
        """Bytes of the file before what is looked at."""
        return self._start + self._at

    def sign(self) -> str:
        """The next character that is no blank; "" at the end of the file."""
        while True:
            place = _past_blanks(self._text, self._at)
            self._advance(place)
            if place < len(self._text) or not self._more():
                return self._text[place : place + 1]

    def skip_past(self, sign: str) -> None:
        """Go behind the next ``sign``, which is in the file."""
        while (found := self._text.find(sign, self._at)) < 0 and self._more():
            pass
        self._advance(found + 1)

    def skip_value(self) -> bool:
        """Go behind the JSON value that starts here; False if it is broken."""
        while True:
            try:
                _, end = self._decoder.raw_decode(self._text, self._at)
            except RecursionError:
                return False
            except json.JSONDecodeError as error:
                cut = error.pos > len(self._text) - _MARGIN or error.msg.startswith("Unterminated string")
                if not cut or len(self._text) - self._at > LONGEST or not self._more():
                    return False
            else:
                if end < len(self._text) or not self._more():  # a number may go on
                    self._advance(end)
                    return True

    def _advance(self, place: int) -> None:
        self.line += self._text.count("\n", self._at, place)
        self._at = place

    def _more(self) -> bool:
        """Read on, at least as much again as is held, so that a long value is decoded few times."""
        read = self._file.read(max(_CHUNK, len(self._text) - self._at))
        if read:
            self._start, self._at, self._text = self._start + self._at, 0, self._text[self._at :] + read.decode("latin-1")
        return bool(read)


def _past_blanks(text: str, place: int) -> int:
    while text[place : place + 1] and text[place] in _BLANK:
        place += 1
    return place
