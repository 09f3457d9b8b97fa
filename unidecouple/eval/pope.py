"""POPE's rules (arXiv 2305.10355, MIT): does a model see objects that are not there? Parsers of answers, and metrics."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from unidecouple.eval.benchmark import Score

CHANCE = 0.5
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


@dataclass(frozen=True)
class Parser:
    """How answers become "yes", "no" or "unknown", and how an unknown one is scored.

    ``unknown`` is "yes" (it counts as a yes), "miss" (wrong, and a missed positive in recall) or "skip" (wrong in accuracy, left
    out of precision and recall).
    """

    read: Callable[[str], str]
    unknown: str


def _read_official(answer: str) -> str:
    words = answer.split(".", maxsplit=1)[0].replace(",", "").split(" ")
    if {"No", "no", "not"} & set(words):
        return "no"
    return "yes" if re.search(r"\byes\b", answer, re.IGNORECASE) else "unknown"


def _read_exact(answer: str) -> str:
    stripped = answer.lower().strip()
    return stripped if stripped in ("yes", "no") else "unknown"


def _read_words(answer: str) -> str:
    lowered = text = answer.lower()
    digits = re.search(r"\d,\d", lowered) is not None
    for mark in _PUNCTUATION:
        glued = not digits and f"{mark} " not in lowered and f" {mark}" not in lowered
        text = text.replace(mark, " " if glued else "")
    words = set(re.sub(r"\.(?!\d)", "", text).split())
    return "unknown" if ("yes" in words) == ("no" in words) else "yes" if "yes" in words else "no"


PARSERS: dict[str, Parser] = {
    "official": Parser(_read_official, "yes"),
    "lmms-eval": Parser(_read_exact, "skip"),
    "vlmevalkit": Parser(_read_words, "miss"),
}
"""The three parsers in use disagree ("NO" is yes, wrong and no), so a POPE score names its own.

"official" counts every answer without a literal No, no or not as yes; those in which it did not find a yes either are its
unparsed ones.
"""
PARSERS |= {"llava": PARSERS["official"], "exact": PARSERS["lmms-eval"]}
"""Other names in use: LLaVA's ``eval_pope.py`` is the official rule, word for word."""


def known_parser(parser: str) -> None:
    """Refuse the name of no parser.

    Raises:
        ValueError: ``parser`` is none of ``PARSERS``.
    """
    if parser not in PARSERS:
        raise ValueError(f"unknown POPE parser {parser!r}; known: {', '.join(PARSERS)}")


def settle(answer: str, parser: Parser) -> str:
    """The label that ``parser`` scores ``answer`` as: "yes", "no", or "unknown" where that is no yes."""
    label = parser.read(answer)
    return "yes" if label == "unknown" and parser.unknown == "yes" else label


def measure_answers(gold: Sequence[str], answers: Sequence[str], parser: Parser) -> dict[str, float]:
    """Accuracy, precision, recall, f1, yes_ratio (of predictions, not of labels) and the number of unparsed answers.

    A ratio whose denominator is zero is 0, as in lmms-eval and VLMEvalKit (the official script fails).
    """
    settled = [settle(answer, parser) for answer in answers]
    pairs = Counter(zip(settled, gold, strict=True))
    hits = pairs["yes", "yes"]
    missed = pairs["no", "yes"] + (pairs["unknown", "yes"] if parser.unknown == "miss" else 0)
    precision, recall = _share(hits, hits + pairs["yes", "no"]), _share(hits, hits + missed)
    return {
        "accuracy": _share(hits + pairs["no", "no"], len(gold)),
        "precision": precision,
        "recall": recall,
        "f1": 2 * _share(precision * recall, precision + recall),
        "yes_ratio": _share(settled.count("yes"), len(gold)),
        "unparsed": float(sum(parser.read(answer) == "unknown" for answer in answers)),
    }


def rows(metrics: Mapping[str, float], suffix: str, parser: str) -> list[Score]:
    """Score rows of ``measure``'s result; chance is one half, except for what is only counted."""
    counted = ("yes_ratio", "unparsed")
    return [
        Score("pope", name + suffix, value, parser, *((None, None) if name in counted else (1.0, CHANCE)))
        for name, value in metrics.items()
    ]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
