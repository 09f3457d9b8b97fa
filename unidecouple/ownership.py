"""What may be overwritten: only what this package wrote, and never what a command reads.

A folder that this package writes as a whole carries ``MARKER``, which lists its files. A page, an image or a JSON file is
recognised by its first bytes. Anything else belongs to the user and is refused, with its name.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

MARKER = ".unidecouple"
"""Hidden file in every folder that ``files.atomic_directory`` made for a user: the names of all other files in it."""

_HEAD = 2048
_SIGNATURES = re.compile(
    rb'<meta name="generator" content="unidecouple">|<title>[^<\n]* \xc2\xb7 UniDecouple report</title>'  # pages; the 2nd: 0.1.0
    rb'|\A\{\n "step": \d+,\n "checkpoint": '  # scores.json of an evaluation, not of a run
    rb'|\A\{\n "meta": \{\n  "name": [^\n]*,\n  "created": [^\n]*,\n  "command": "unidecouple report'  # not of `compare`
    rb"|\A<!-- unidecouple -->\n|\A## [^\n]*\n\n\| \| seeds \||\A\| claim \| source \| where \|"  # tables; the 2nd and 3rd: 0.2.0
    rb"|tEXtunidecouple\0"  # an image's settings, see generate/album.py
    rb'|\A\{\n "generator": "unidecouple",\n|\A\{\n "name": "[^\n]*",\n "checkpoint": "'  # diagnosis.json; the 2nd: 0.1.0
)
_LEFT = re.compile(r"\.[0-9a-f]{12}\.(?P<kind>tmp|old)$")
_DAY = 86_400
_log = logging.getLogger(__name__)


def check_directory(target: Path, sources: Iterable[Path] = ()) -> None:
    """Refuse a folder to write whose replacement would lose anything but an earlier result of this package.

    Raises:
        ValueError: ``target`` is a file, the current folder, or a folder with files that this package did not write; or it is one
            of ``sources``, or a folder inside or around one of them.
    """
    check_apart(target, sources)
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise ValueError(f"--output {target} is a file or a broken link, and a folder is to be written: choose another --output")
    if any(_same(target, place) for place in (Path.cwd(), *Path.cwd().parents)):
        raise ValueError(f"--output {target} is the current folder, or a folder around it: choose another --output")
    if (name := foreign(target)) is not None:
        raise ValueError(
            f"--output {target} holds {name}, which unidecouple did not write there: choose another --output, or move that away"
        )


def check_file(target: Path, sources: Iterable[Path] = (), content: bytes | None = None) -> None:
    """Refuse a file to write whose replacement would lose anything but an earlier file of this package.

    Args:
        target: the file.
        sources: what the command reads.
        content: what is to be written, where it is known; a file that holds it already is no loss.

    Raises:
        ValueError: ``target`` is a folder, a device, one of ``sources``, or a file that this package did not write.
    """
    for source in sources:
        if _same(Path(os.path.realpath(source)), Path(os.path.realpath(target))):
            raise ValueError(f"--output {target} is {source}, which is read: choose another --output")
    if not os.path.lexists(target):
        holder = next(folder for folder in target.absolute().parents if os.path.lexists(folder))
        if not holder.is_dir():
            raise ValueError(f"--output {holder} is a file or a broken link, and {target.name} is to lie in it: choose another")
        return
    if not target.is_file():
        raise ValueError(f"--output {target} is no regular file: name a new file")
    with target.open("rb") as file:
        head = file.read(_HEAD)
    if head and not _SIGNATURES.search(head) and (content is None or target.read_bytes() != content):
        raise ValueError(f"--output {target} exists, and unidecouple did not write it: choose another --output, or move it away")


def check_apart(target: Path, sources: Iterable[Path]) -> None:
    """Refuse a target that is one of ``sources``, or lies inside or around one; links and hard links are followed.

    Raises:
        ValueError: it is or does.
    """
    real = Path(os.path.realpath(target))
    for source in sources:
        read = Path(os.path.realpath(source))
        if any(_same(place, real) for place in (read, *read.parents)):
            raise ValueError(f"--output {target} is {source}, which is read, or a folder around it: choose another --output")
        if any(_same(place, read) for place in real.parents):
            raise ValueError(f"--output {target} is inside {source}, which is read: choose another --output")


def foreign(folder: Path) -> str | None:
    """The first file or empty folder in ``folder`` that its marker does not list; None where this package wrote all."""
    names = _names(folder)
    try:
        listed = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        listed = []
    valid = isinstance(listed, list) and all(isinstance(name, str) for name in listed)
    known = {MARKER, *(listed if valid else ())}
    return next((name for name in names if name not in known), None)


def mark(folder: Path) -> None:
    """Write the marker of a finished folder."""
    content = json.dumps({"generator": "unidecouple", "files": _names(folder)}, indent=1)
    (folder / MARKER).write_text(content + "\n", encoding="utf-8")


def recover(target: Path) -> None:
    """Settle what killed processes left beside ``target``.

    A folder that was moved aside and not replaced gets its name back. An earlier result that was replaced is deleted, and so is a
    half-written folder after a day. A folder moved aside with the user's files in it stays, and a warning names it.
    """
    for path in sorted(target.parent.glob(f".{glob.escape(target.name)}.*")):
        match = _LEFT.fullmatch(path.name.removeprefix(f".{target.name}"))
        if match is None or path.is_symlink() or not path.is_dir():
            continue
        if match["kind"] == "tmp":
            if time.time() - path.stat().st_mtime > _DAY:
                shutil.rmtree(path, ignore_errors=True)
        elif not os.path.lexists(target):
            path.rename(target)
        elif foreign(path) is None:
            shutil.rmtree(path, ignore_errors=True)
        else:
            _log.warning("%s holds what stood at %s before a command was killed: move or delete it", path, target)


def _names(folder: Path) -> list[str]:
    """Files and empty folders in ``folder`` at any depth, in order; links are not followed."""

    def stop(error: OSError) -> None:
        raise error

    found = []
    for place, folders, files in os.walk(folder, onerror=stop):
        inner = Path(place)
        links = [name for name in folders if (inner / name).is_symlink()]
        found += [(inner / name).relative_to(folder).as_posix() for name in (*files, *links)]
        if not folders and not files and inner != folder:
            found.append(inner.relative_to(folder).as_posix())
    return sorted(found)


def _same(left: Path, right: Path) -> bool:
    """Whether both are one file or folder on the disk, or would be."""
    try:
        return left == right or left.samefile(right)
    except OSError:
        return False
