"""What users hand in: paths that must be plain files, texts that must be Unicode, and how messages quote them."""

from __future__ import annotations

import contextlib
import re
import stat
from pathlib import Path
from typing import Final

LFS_START: Final = b"version https://git-lfs.github.com/spec/"
"""First bytes of a Git LFS pointer, which lies in the place of a large file until it is fetched."""
LFS_POINTER: Final = "a Git LFS pointer, not the file itself: fetch the file by `git lfs pull`"
QUOTED: Final = 100
"""Characters of a value that a message quotes."""

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_KINDS: Final = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def special_file(path: Path) -> str | None:
    """Name what ``path`` is, if reading it could wait or go on for ever: a named pipe, a device or a socket; else None.

    Nothing is opened. A path that is missing or cannot be looked at gives None; opening it gives the error.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # ValueError: a NUL character or half a surrogate pair in the name
        return None
    return next((name for is_kind, name in _KINDS if is_kind(mode)), None)


def refuse_special(path: Path) -> None:
    """Refuse a path that ``special_file`` names.

    Raises:
        ValueError: with the path, what it is and the remedy.
    """
    if kind := special_file(path):
        raise ValueError(f"{printable(str(path), QUOTED)} is {kind}, not a file: write the data to a file and give that")


def refuse_pointer(path: Path) -> None:
    """Refuse a Git LFS pointer. Any other path passes, also of a file that cannot be read: its reader says why.

    Raises:
        ValueError: with the path and the remedy.
    """
    start = b""
    with contextlib.suppress(OSError), path.open("rb") as file:
        start = file.read(len(LFS_START))
    if start == LFS_START:
        raise ValueError(f"{printable(str(path))} is {LFS_POINTER}")


def quoted(value: object) -> str:
    """``repr`` of ``value``, shortened to ``QUOTED`` characters."""
    if isinstance(value, str | bytes):  # repr of megabytes takes its time
        value = value if len(value) <= 3 * QUOTED else value[: 3 * QUOTED]
    text = repr(value)
    return printable(text, QUOTED)


def printable(text: str, most: int | None = None) -> str:
    """``text`` as any terminal and UTF-8 file can take it, control characters and surrogates escaped; cut to ``most``."""
    if most is not None and len(text) > most:
        text = f"{text[: most - most // 4 - 1]}…{text[-(most // 4) :]}"
    text = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    return text.encode("utf-8", "backslashreplace").decode()


def refuse_surrogates(text: str, what: str = "text") -> None:
    r"""Refuse half a surrogate pair, which JSON can spell (``"\ud83d"``) and no tokenizer takes.

    ``what`` names the text in the message.

    Raises:
        ValueError: with the code and its place in the text.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        place = f"{code} at character {error.start}"
        raise ValueError(f"the {what} {quoted(text)} has half a surrogate pair ({place}), which is no Unicode: remove it") from None
