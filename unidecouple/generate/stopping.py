"""Stop strings: where an answer ends before its EOS, and what of a growing answer can already be shown."""

from __future__ import annotations

from collections.abc import Sequence


def before_stop(text: str, stops: Sequence[str]) -> str:
    """``text`` up to the first occurrence of any of ``stops``; all of it where there is none."""
    found = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return text[: min(found)] if found else text


def has_stop(text: str, stops: Sequence[str]) -> bool:
    """Whether a growing ``text`` has come to one of ``stops``. U+FFFD at its end may yet become a character, and does not count."""
    return any(stop in text.rstrip("\ufffd") for stop in stops)


def settled(text: str, stops: Sequence[str]) -> str:
    """What of a growing ``text`` stays in the answer whatever comes: not the end that may be the start of one of ``stops``."""
    ended = before_stop(text, stops)
    if len(ended) < len(text):
        return ended
    starts = (stop[:length] for stop in stops for length in range(1, len(stop)))
    held = max((len(start) for start in starts if text.endswith(start)), default=0)
    return text[: len(text) - held]
