"""MMMU's official reading of answers (MMMU-Benchmark/MMMU ``mmmu/utils/eval_utils.py``, Apache-2.0), failures reported.

The official multiple-choice parser draws a letter at random where it finds none. ``read_choice`` says None instead, so that the
score can be given both ways; all else is the official behaviour, odd corners included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_MARKS = (",", ".", "!", "?", ";", ":", "'")
_LONG = 5
"""Words from which an answer may be an option's text in a sentence."""
_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 1,234,567
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # 1.2e-3
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),  # 12, 1.2, .5
)
NumberOrText = str | float


def read_choice(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter that ``answer`` names, the last if it names several; None if none.

    First "(A)" anywhere, then a letter between spaces, then, in answers of more than five words, an option's own text.

    Args:
        answer: the model's.
        options: letter -> text.
    """
    for mark in _MARKS:
        answer = answer.strip(mark)
    padded = f" {answer} "
    forms = [{letter: f"({letter})" for letter in options}, {letter: f" {letter} " for letter in options}]
    for form in forms:
        places = {letter: padded.rfind(sought) for letter, sought in form.items() if sought in padded}
        if places:
            return max(places, key=lambda letter: places[letter])
    if len(padded.split()) > _LONG:
        lowered = padded.lower()
        places = {letter: lowered.rfind(text.lower()) for letter, text in options.items() if text.lower() in lowered}
        if places:
            return max(places, key=lambda letter: places[letter])
    return None


def read_open(answer: str) -> list[NumberOrText]:
    """What an open answer may mean: the ends of its key sentences and the numbers in them, normalised."""
    keys = _key_phrases(answer)
    said = keys + [number for key in keys for pattern in _NUMBERS for number in pattern.findall(key)]
    return list(dict.fromkeys(value for text in said for value in normalize(text)))


def normalize(text: str) -> list[NumberOrText]:
    """A number rounded to two decimals, or the text in lower case (a single letter with a space before, and after it)."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lowered = text.lower()
        return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]


def open_is_right(gold: str | Sequence[str], read: Sequence[NumberOrText]) -> bool:
    """Whether one of the readings contains a gold text, or equals a gold number."""
    wanted = [value for text in ([gold] if isinstance(gold, str) else gold) for value in normalize(text)]
    for value in read:
        if isinstance(value, str):
            if any(isinstance(one, str) and one in value for one in wanted):
                return True
        elif value in wanted:
            return True
    return False


def _key_phrases(answer: str) -> list[str]:
    """For each sentence with a key word (in the last one, and "=") the shortest text after one; all of it if there is none.

    The official text is lowered before it is split at a full stop and a capital letter, so only line ends part sentences.
    """
    answer = answer.strip().strip(".").lower()
    sentences = re.split(r"\.\s(?=[A-Z])|\n", answer)
    phrases = []
    for number, sentence in enumerate(sentences):
        keys = [*_KEYS, "="] if number == len(sentences) - 1 else _KEYS
        ends = [sentence.split(key)[-1].strip() for key in keys if key in sentence]
        shortest = _first_shortest(ends)
        if shortest and shortest not in (*_MARKS, ":"):
            phrases.append(shortest)
    return phrases or [answer]


def _first_shortest(ends: Sequence[str]) -> str:
    """The shortest text, where an empty one gives way to whatever follows it, as in the official loop."""
    shortest = ""
    for end in ends:
        if not shortest or len(end) < len(shortest):
            shortest = end
    return shortest
