"""Turn a JSON object or table row into a record: messages, LLaVA conversations, question and answer, or prompt and image."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from unidecouple.data.columns import ANSWERS, NAMES, OPTIONAL, PICTURES, PROMPTS, QUESTIONS, rename
from unidecouple.data.formats.qa import TAG, as_messages, listed_images, question_key, source_images
from unidecouple.data.formats.record import BadRecordError, ImageBytes, ImageFile, Record, Role, StoredImage, Turn, make_record
from unidecouple.inputs import quoted

_ROLES: Final[dict[str, Role]] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "system": "system",
}
_NEEDED: Final = frozenset(NAMES) - frozenset(OPTIONAL) | frozenset(PICTURES)
"""Keys whose value null can leave a record without a format."""
_BARE: Final = 64
"""Shortest text, in characters, that is tried as an image in base64."""
_LONGEST_PATH: Final = 4096
_BARE_HEADS: Final = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk", "SUkqA", "TU0AK")
"""First base64 characters of PNG, JPEG, GIF, WebP, BMP and TIFF files (both byte orders)."""

_SOURCES: Final = {"image": ("url", "path", "base64"), "image_url": ()}
"""Type of a content part -> other keys that may contain its image, as in transformers' chat templates."""

Find = Callable[[str], StoredImage]
"""Returns the image for its name in a record."""


def parse(entry: object, where: str, find: Find, data_type: str | None = None, columns: Mapping[str, str] | None = None) -> Record:
    """Parse ``entry`` into a record.

    Args:
        entry: a JSON object or a row of a table.
        where: file and line, for error messages.
        find: returns the image for its name.
        data_type: "messages", "llava", "qa" or "flat"; None detects it from the keys, first from those in ``columns``.
        columns: our field name -> the user's key, see ``data/columns.py``.

    Raises:
        BadRecordError: the entry is in none of these formats, or broken.
    """
    if not isinstance(entry, Mapping):
        raise BadRecordError(where, f"a JSON object is expected, not {type(entry).__name__}")
    try:
        entry = rename(entry, columns or {})
    except KeyError as error:
        raise BadRecordError(where, str(error.args[0])) from error
    form = data_type or entry_type({name: entry.get(name) for name in columns or ()}) or entry_type(entry)
    if form is None:
        nulls = sorted(str(key) for key, value in entry.items() if value is None and key in _NEEDED)
        raise BadRecordError(
            where,
            f"{', '.join(nulls)} {'is' if len(nulls) == 1 else 'are'} null: give a value"
            if nulls
            else f"keys {quoted(sorted(map(str, entry))[:8])} are of no known format: give messages, conversations, one of "
            f"{', '.join(QUESTIONS)} with one of {', '.join(ANSWERS)}, or image with one of {', '.join(PROMPTS)}; "
            "or map your keys with columns",
        )
    turns = {"messages": _messages, "llava": _llava, "qa": _qa, "flat": _flat}[form](entry, where, find)
    return make_record(turns, entry.get("task"), where)


def entry_type(entry: Mapping[str, Any]) -> str | None:
    """Return the format of ``entry`` by its keys, or None. Null values count as absent, since tables fill gaps with them."""
    there = {key for key, value in entry.items() if value is not None}
    if "messages" in there:
        return "messages"
    if "conversations" in there:
        return "llava"
    if question_key(entry) is not None:
        return "qa"
    return "flat" if there & set(PICTURES) and there & set(PROMPTS) else None


def folder_finder(root: Path) -> Find:
    """Return a function that finds images by data URL, bare base64, or path relative to ``root``. Nothing is downloaded."""

    def find(name: str) -> StoredImage:
        if (content := _bare_base64(name)) is not None:
            return ImageBytes(content)
        if name.startswith("data:"):
            head, _, body = name.partition(",")
            if not head.endswith(";base64"):
                raise ValueError(f"data URL {head[:40]!r} is not base64")
            try:
                return ImageBytes(base64.b64decode("".join(body.split()), validate=True))
            except ValueError as error:
                raise ValueError(f"data URL {head[:40]!r}: {error}") from error
        if re.match(r"[a-z][a-z0-9+.-]+://", name, re.IGNORECASE):
            raise ValueError(f"{quoted(name[:80])} is a web address: download the image and give its path")
        return ImageFile(root / name)

    return find


def _bare_base64(name: str) -> bytes | None:
    """Decode ``name`` if it is an image in base64 without the head of a data URL; else return None.

    Raises:
        ValueError: it starts like an image, is too long for a path, and is not valid base64.
    """
    if len(name) < _BARE or not name.lstrip().startswith(_BARE_HEADS):
        return None
    try:
        return base64.b64decode("".join(name.split()), validate=True)
    except ValueError as error:
        if len(name) < _LONGEST_PATH:
            return None
        raise ValueError(f"{quoted(name)} looks like an image in base64, but is broken: {error}") from error


def _messages(entry: Mapping[str, Any], where: str, find: Find) -> list[Turn]:
    return _turns(entry, "messages", ("role", "content"), where, find)


def _llava(entry: Mapping[str, Any], where: str, find: Find) -> list[Turn]:
    return _turns(entry, "conversations", ("from", "value"), where, find)


def _qa(entry: Mapping[str, Any], where: str, find: Find) -> list[Turn]:
    try:
        return _messages(as_messages(entry), where, find)
    except BadRecordError:
        raise
    except ValueError as error:
        raise BadRecordError(where, str(error)) from error


def _flat(entry: Mapping[str, Any], where: str, find: Find) -> list[Turn]:
    if entry.get("task") not in (None, "t2i"):
        raise BadRecordError(
            where, f'"task": {quoted(entry["task"])} with a flat prompt and image, which is t2i: give messages instead'
        )
    prompt = next((entry[key] for key in PROMPTS if entry.get(key) is not None), None)
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadRecordError(where, f"the prompt is {quoted(prompt)}; give one of {', '.join(PROMPTS)}")
    if not (listed := listed_images(entry)):
        raise BadRecordError(where, "the prompt has no image")
    sources, images = (tuple(_picture(value, where, find) for value in some) for some in (source_images(entry), listed))
    return [Turn("user", (*sources, prompt.strip())), Turn("assistant", images)]


def _turns(entry: Mapping[str, Any], key: str, names: tuple[str, str], where: str, find: Find) -> list[Turn]:
    """Read the turns in ``entry[key]``; ``names`` are the keys of speaker and content. Tags take the listed images in order."""
    turns_read = entry.get(key)
    if not isinstance(turns_read, list) or not all(isinstance(turn, Mapping) for turn in turns_read):
        raise BadRecordError(where, f"{key} is not a list of objects")
    listed = listed_images(entry)
    waiting = iter(listed)
    turns = []
    for turn in turns_read:
        speaker = str(turn.get(names[0]))
        if speaker not in _ROLES:
            raise BadRecordError(where, f"{names[0]}: {quoted(speaker)} is not one of {', '.join(_ROLES)}")
        turns.append(Turn(_ROLES[speaker], tuple(_parts(turn.get(names[1]), waiting, where, find))))
    unused = len(list(waiting))
    if unused:
        raise BadRecordError(where, f"{len(listed)} images are listed, but {unused} of them have no {TAG} in the text")
    return turns


def _parts(content: object, waiting: Iterator[object], where: str, find: Find) -> Iterator[str | StoredImage]:
    """Yield texts (stripped, not empty) and images of a turn, whose content is a text with tags or OpenAI's list of parts."""
    if isinstance(content, str):
        for number, words in enumerate(content.split(TAG)):
            if number:
                yield _next(waiting, where, find)
            if words.strip():
                yield words.strip()
    elif isinstance(content, list):
        for part in content:
            yield from _part(part, waiting, where, find)
    else:
        raise BadRecordError(where, f"content is {type(content).__name__}; give a text, or a list of parts")


def _part(part: object, waiting: Iterator[object], where: str, find: Find) -> Iterator[str | StoredImage]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or not isinstance(kind, str) or kind not in ("text", "image", "image_url"):
        raise BadRecordError(where, f"a content part of type {quoted(kind)}; text, image and image_url are known")
    if kind == "text":
        words = part.get("text")
        if not isinstance(words, str):
            raise BadRecordError(where, f"the text of a content part is {type(words).__name__}")
        yield from _parts(words, waiting, where, find)
        return
    value = next((part[name] for name in (kind, *_SOURCES[kind]) if part.get(name) is not None), None)
    if kind == "image_url" and isinstance(value, Mapping):
        value = value.get("url")
    yield _next(waiting, where, find) if value is None else _picture(value, where, find)


def _next(waiting: Iterator[object], where: str, find: Find) -> StoredImage:
    for value in waiting:
        return _picture(value, where, find)
    raise BadRecordError(where, f"more {TAG} tags than images listed under images")


def _picture(value: object, where: str, find: Find) -> StoredImage:
    """Return an image given by name, by bytes, or by the {bytes, path} that ``datasets`` stores."""
    if isinstance(value, Mapping):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes) and value:
        return ImageBytes(value)
    if isinstance(value, str | bytes) and not value:
        raise BadRecordError(where, f"an image is empty ({value!r}); give a path, a data URL or bytes")
    if not isinstance(value, str):
        raise BadRecordError(where, f"an image has type {type(value).__name__}; give a path, a data URL or bytes")
    try:
        return find(value)
    except (ValueError, KeyError) as error:
        raise BadRecordError(where, str(error.args[0]) if isinstance(error, KeyError) else str(error)) from error
