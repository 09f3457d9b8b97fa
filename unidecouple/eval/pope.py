"""POPE's rules (arXiv 2305.10355, MIT): does a model see objects that are not there? Parsers of answers, and metrics."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unidecouple.eval.benchmark import Answers, BenchmarkResult, Score
from unidecouple.eval.statistics import ClusteredProportion

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
    precision, recall = _ratio(hits, hits + pairs["yes", "no"]), _ratio(hits, hits + missed)
    return {
        "accuracy": _ratio(hits + pairs["no", "no"], len(gold)),
        "precision": precision,
        "recall": recall,
        "f1": 2 * _ratio(precision * recall, precision + recall),
        "yes_ratio": _ratio(settled.count("yes"), len(gold)),
        "unparsed": float(sum(parser.read(answer) == "unknown" for answer in answers)),
    }


@dataclass(frozen=True)
class PopeQuestion:
    """A question of a split.

    Attributes:
        id: the same in several splits where they ask the same question.
        split: random, popular or adversarial.
        image: its name.
        text: of the question.
        label: "yes" or "no".
        where: file and line; empty for generated questions.
    """

    id: str
    split: str
    image: str
    text: str
    label: str
    where: str = ""


def score_pope(questions: Sequence[PopeQuestion], parser: str, answers: Answers, baseline: Score) -> BenchmarkResult:
    """Score ``answers`` (by id): every metric over all questions and per split ("accuracy/random"), and ``baseline``.

    Chance is one half, except for what is only counted. Images are the clusters of the intervals.
    """
    rules = PARSERS[parser]
    splits = dict.fromkeys(question.split for question in questions)
    groups = {"": list(questions)} | {f"/{split}": [one for one in questions if one.split == split] for split in splits}
    scores: list[Score] = []
    proportions = {}
    for suffix, group in groups.items():
        given = [answers[question.id] for question in group]
        for name, value in measure_answers([question.label for question in group], given, rules).items():
            bounds = (None, None) if name in ("yes_ratio", "unparsed") else (1.0, CHANCE)
            scores.append(Score("pope", name + suffix, value, parser, *bounds))
        right = ((one.image, float(settle(answer, rules) == one.label)) for one, answer in zip(group, given, strict=True))
        proportions[f"accuracy{suffix}"] = ClusteredProportion.of(right)
    unparsed = sum(rules.read(answer) == "unknown" for answer in answers.values())
    return BenchmarkResult((*scores, baseline), proportions, {"unparsed": unparsed})


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
