"""Stop strings: where an answer ends before its EOS, and how much of a partial answer can be shown."""

from __future__ import annotations

from collections.abc import Sequence


def before_stop(text: str, stops: Sequence[str]) -> str:
    """``text`` up to the first occurrence of any of ``stops``; all of it where there is none."""
    found = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return text[: min(found)] if found else text


def has_stop(text: str, stops: Sequence[str]) -> bool:
    """Whether a partial ``text`` contains one of ``stops``. U+FFFD at its end may become another character and does not count."""
    return any(stop in text.rstrip("\ufffd") for stop in stops)


def settled(text: str, stops: Sequence[str]) -> str:
    """Return the part of a partial ``text`` that no further token can remove: without an end that may begin one of ``stops``."""
    ended = before_stop(text, stops)
    if len(ended) < len(text):
        return ended
    starts = (stop[:length] for stop in stops for length in range(1, len(stop)))
    held = max((len(start) for start in starts if text.endswith(start)), default=0)
    return text[: len(text) - held]
