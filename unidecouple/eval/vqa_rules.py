"""How short answers are compared: exactly, or by VQAv2's normalisation and soft accuracy.

The latter is ``vqaEval.py`` of GT-Vision-Lab/VQA (its last fix, a013f00), re-implemented.

Odd corners are kept: nothing is normalised where all people agree, so "a dog" is then no "dog"; a mark beside a space anywhere is
deleted everywhere, and else becomes a space.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

EXACT: Final = "exact"
"""Name of the comparison by ``normalize``."""
_MARKS: Final = tuple(';/[]"{}()=+\\_-><@`,?!')
_DIGITS: Final = re.compile(r"\d,\d")
_PERIOD: Final = re.compile(r"\.(?!\d)")
_MOST_PERIODS: Final = 32
"""The official call passes a flag (re.UNICODE, 32) where ``re.sub`` takes the number of replacements."""
_NUMBERS: Final = {"none": "0"} | {
    word: str(n) for n, word in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
}
_ARTICLES: Final = ("a", "an", "the")
_FORMS: Final = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's "
    "how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock "
    "oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd "
    "someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's "
    "they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd "
    "where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll "
    "y'all'd've you'd you'd've you'll you're you've"
)
_CONTRACTIONS: Final = {
    form[:at] + form[at + 1 :]: form for form in _FORMS.split() for at, letter in enumerate(form) if letter == "'"
} | {"somebody'd": "somebodyd"}
"""A word with one apostrophe missing -> with it. The last entry is the wrong way round in the official table, too."""


def normalize(answer: str) -> str:
    """Return the form in which answers are compared exactly: lower case, no surrounding space, no trailing period."""
    return answer.strip().lower().removesuffix(".").strip()


def normalize_answer(answer: str) -> str:
    """An answer in the form in which it is compared, where people do not all agree."""
    numbers = (_NUMBERS.get(word, word) for word in _no_punctuation(_one_line(answer)).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in numbers if word not in _ARTICLES)


def soft_accuracy(answer: str, people: Sequence[str]) -> float:
    """Mean over the people of min(1, how many others said ``answer`` / 3): 1 where four said it, .9 of ten where three did."""
    said = [_one_line(one) for one in people]
    differ = len(set(said)) > 1
    given = normalize_answer(answer) if differ else _one_line(answer)
    same = [(normalize_answer(one) if differ else one) == given for one in said]
    return sum(min(1.0, (sum(same) - mine) / 3) for mine in same) / len(same)


def _one_line(text: str) -> str:
    return re.sub(r"[\n\t]", " ", text).strip()


def _no_punctuation(text: str) -> str:
    """Marks beside a space are deleted, and all where a comma parts digits; others become spaces. Full stops before no digit go."""
    digits = _DIGITS.search(text) is not None
    out = text
    for mark in _MARKS:
        out = out.replace(mark, "" if f"{mark} " in text or f" {mark}" in text or digits else " ")
    return _PERIOD.sub("", out, count=_MOST_PERIODS)
