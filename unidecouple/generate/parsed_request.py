"""A line of JSON as a request for an answer or an image. Lines of training data work too; their last answer is ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unidecouple.data.columns import PROMPTS
from unidecouple.data.formats.entry import Find, parse
from unidecouple.data.formats.qa import source_images
from unidecouple.data.formats.record import BadRecordError, StoredImage, Turn

_LISTS = {"messages": ("role", "content", "assistant"), "conversations": ("from", "value", "gpt")}


@dataclass(frozen=True)
class ParsedRequest:
    """One line.

    Attributes:
        turns: of the conversation, the user's last; None where an image is asked for.
        prompt: of the image; None where an answer is asked for.
        pictures: source images of the image.
    """

    turns: tuple[Turn, ...] | None = None
    prompt: str | None = None
    pictures: tuple[StoredImage, ...] = ()


def asked(entry: object, where: str, find: Find) -> ParsedRequest:
    """What ``entry`` asks for: messages or conversations (``data/formats``; with the last answer or without), or a bare prompt.

    An image is asked for where ``"task"`` is "t2i", where the assistant's last turn has an image, or by a prompt, with
    ``source_image`` or without. Its prompt are the words of the user's last turn, its source images those of that turn.

    Args:
        entry: the JSON object.
        where: file and line, for messages.
        find: resolves images' names.

    Raises:
        BadRecordError: it is none of these, or broken.
    """
    key = next((name for name in _LISTS if isinstance(entry, Mapping) and entry.get(name)), None)
    if key is None or not isinstance(entry, Mapping):
        return _image(entry, where, find)
    speaker, words, answerer = _LISTS[key]
    turns = list(entry[key]) if isinstance(entry[key], list) else [entry[key]]
    last = turns[-1]
    task = entry.get("task")
    if isinstance(last, Mapping) and last.get(speaker) in ("user", "human"):
        turns.append({speaker: answerer, words: "?"})  # what is to be answered; the formats know complete records only
    record = parse({**entry, key: turns, "task": None if task == "t2i" else task}, where, find)
    before = record.turns[:-1]
    if task == "t2i" or record.kind == "t2i":
        prompt = " ".join(part for part in before[-1].parts if isinstance(part, str))
        if not prompt:
            raise BadRecordError(where, "an image is asked for without words")
        return ParsedRequest(prompt=prompt, pictures=before[-1].pictures)
    return ParsedRequest(turns=before)


def _image(entry: object, where: str, find: Find) -> ParsedRequest:
    given: Any = {} if not isinstance(entry, Mapping) else entry
    prompt = next((given[name] for name in PROMPTS if given.get(name) is not None), None)
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadRecordError(where, f"asks for nothing: give messages, conversations, or one of {', '.join(PROMPTS)}")
    sources = source_images(given)
    if not sources:
        return ParsedRequest(prompt=prompt.strip())
    [user, _] = parse({"prompt": prompt, "source_images": sources, "image": sources}, where, find, "flat").turns
    return ParsedRequest(prompt=prompt.strip(), pictures=user.pictures)
