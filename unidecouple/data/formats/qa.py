"""Questions with answers in columns: Alpaca (instruction, input, output), ms-swift (query, response), question and answer.

Alpaca: github.com/tatsu-lab/stanford_alpaca. As in LLaMA-Factory, ``input`` follows the instruction on a line of its own, and
``history`` is a list of (question, answer) pairs before it. Images stand where the text has ``<image>``; in a record without that
tag they come before the first question, as in ms-swift.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from unidecouple.data.columns import ANSWERS, PICTURES, QUESTIONS, SOURCES
from unidecouple.inputs import quoted

TAG: Final = "<image>"
_PROMPTED: Final = ("response", "completion")
"""Answers that make a ``prompt`` a question; beside other keys it describes an image to be generated."""


def question_key(entry: Mapping[str, Any]) -> str | None:
    """The key of the question, if ``entry`` is a question with an answer; null values count as absent."""
    there = {key for key, value in entry.items() if value is not None}
    if there & set(ANSWERS):
        for key in QUESTIONS:
            if key in there:
                return key
    return "prompt" if "prompt" in there and there & set(_PROMPTED) else None


def as_messages(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The same record with ``messages`` and ``images``.

    Raises:
        ValueError: the question or the answer is missing or no text, or ``history`` is no list of pairs.
    """
    key = question_key(entry)
    if key is None:
        raise ValueError(f"no question with an answer: give one of {', '.join(QUESTIONS)} and one of {', '.join(ANSWERS)}")
    question = _text(entry, key)
    if entry.get("input") not in (None, ""):
        question = f"{question}\n{_text(entry, 'input')}"
    answer = _text(entry, next(name for name in ANSWERS if entry.get(name) is not None))
    texts = [*_history(entry.get("history")), question, answer]
    listed = listed_images(entry)
    if listed and not any(TAG in text for text in texts):
        texts[0] = TAG * len(listed) + texts[0]
    turns = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]
    if entry.get("system") not in (None, ""):
        turns.insert(0, {"role": "system", "content": _text(entry, "system")})
    return {"messages": turns, "images": listed or None}


def listed_images(entry: Mapping[str, Any]) -> list[Any]:
    """Images under ``images`` or ``image``, one or a list of them."""
    return _listed(entry, PICTURES)


def source_images(entry: Mapping[str, Any]) -> list[Any]:
    """Images under ``source_images`` or ``source_image``, one or a list of them."""
    return _listed(entry, SOURCES)


def _listed(entry: Mapping[str, Any], names: tuple[str, ...]) -> list[Any]:
    given: Any = next((entry[name] for name in reversed(names) if entry.get(name) is not None), [])
    return given if isinstance(given, list) else [given]


def _text(entry: Mapping[str, Any], key: str) -> str:
    if not isinstance(entry[key], str):
        raise ValueError(f"{key} is {type(entry[key]).__name__}; give a text")  # noqa: TRY004 - a user's mistake
    return entry[key]


def _history(value: object) -> list[str]:
    if value is None:
        return []
    pairs = value if isinstance(value, list) else [None]
    texts = [text for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2 for text in pair if isinstance(text, str)]
    if len(texts) != 2 * len(pairs):
        raise ValueError(f"history is {quoted(value)}; give a list of [question, answer] pairs")
    return texts
