"""GenEval's 553 prompts, made anew: the published ``evaluation_metadata.jsonl`` byte for byte (``PUBLISHED_SHA256``).

The official ``create_prompts.py`` (djghosh13/geneval, MIT) draws 100 samples per tag (every class once for single objects) from one
``numpy.random.default_rng(43)`` and drops repeated ones. What must agree is the order of the draws, which each function says.
Odd plurals ("four benchs", "two knifes") are the published ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from unidecouple.eval.benchmark import Metadata
from unidecouple.eval.geneval import RELATIONS, metadata_of
from unidecouple.eval.records import read_records
from unidecouple.files import write_text_atomic
from unidecouple.ownership import check_file

PUBLISHED_SHA256: Final = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
SEED, SAMPLES = 43, 100
METADATA: Final = "evaluation_metadata.jsonl"

_NAMES: Final = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking meter,
bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee,
skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup,
fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted
plant, bed, dining table, toilet, tv, laptop, computer mouse, tv remote, computer keyboard, cell phone, microwave, oven,
toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush
"""
CLASSES: Final = tuple(" ".join(_NAMES.split()).split(", "))
"""COCO's 80 classes in GenEval's order and words; "person" is first, and is never given a colour."""
COLORS: Final = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
_NUMBERS: Final = ("zero", "one", "two", "three", "four")
_FIRST_COLORED = 1


def official_metadata() -> list[Metadata]:
    """The published lines in their order."""
    rng = np.random.default_rng(SEED)
    drawn = [_single(index) for index in rng.choice(len(CLASSES), size=len(CLASSES), replace=False)]
    makers: tuple[Callable[[np.random.Generator], dict[str, Any]], ...] = (_two, _counting, _colors, _position, _color_attr)
    for make in makers:
        drawn += [make(rng) for _ in range(SAMPLES)]
    return list({json.dumps(line): line for line in drawn}.values())


def write_official(folder: Path) -> Path:
    """Write ``evaluation_metadata.jsonl`` and ``generation_prompts.txt`` as they are published, and return the first.

    Raises:
        ValueError: one of them is there with other content.
    """
    lines = official_metadata()
    texts = {
        METADATA: "".join(json.dumps(line) + "\n" for line in lines),
        "generation_prompts.txt": "".join(f"{line['prompt']}\n" for line in lines),
    }
    for name, text in texts.items():
        check_file(folder / name, content=text.encode())
    for name, text in texts.items():
        write_text_atomic(folder / name, text)
    return folder / METADATA


def read_metadata(path: Path, limit: int | None = None) -> list[Metadata]:
    """The lines of such a file; with ``limit`` the first so many of each tag.

    Raises:
        ValueError: there are none, or one is no JSON or not as ``metadata_of`` needs it.
    """
    lines = [metadata_of(row) for row in read_records(path, ("tag", "include", "prompt"))]
    if limit is None:
        return lines
    ranks: dict[str, int] = {}
    kept: list[Metadata] = []
    for line in lines:
        ranks[line["tag"]] = ranks.get(line["tag"], 0) + 1
        kept += [line] if ranks[line["tag"]] <= limit else []
    return kept


def _line(tag: str, include: Sequence[dict[str, Any]], prompt: str, **exclude: Any) -> dict[str, Any]:
    return {"tag": tag, "include": list(include), **exclude, "prompt": f"a photo of {prompt}"}


def _clause(index: int, **more: Any) -> dict[str, Any]:
    return {"class": CLASSES[index], "count": 1, **more}


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _single(index: int) -> dict[str, Any]:
    return _line("single_object", [_clause(index)], _a(CLASSES[index]))


def _two(rng: np.random.Generator) -> dict[str, Any]:
    """Both classes in one draw."""
    one, other = rng.choice(len(CLASSES), size=2, replace=False)
    return _line("two_object", [_clause(one), _clause(other)], f"{_a(CLASSES[one])} and {_a(CLASSES[other])}")


def _counting(rng: np.random.Generator) -> dict[str, Any]:
    """The class, then how many."""
    index, count = rng.choice(len(CLASSES)), int(rng.integers(2, 4, endpoint=True))
    name = CLASSES[index]
    plural = name + ("es" if name.endswith("s") else "s")
    exclude = [{"class": name, "count": count + 1}]
    return _line("counting", [{"class": name, "count": count}], f"{_NUMBERS[count]} {plural}", exclude=exclude)


def _colors(rng: np.random.Generator) -> dict[str, Any]:
    """The class (no person), then its colour."""
    index = rng.choice(len(CLASSES) - 1) + _FIRST_COLORED
    color = COLORS[rng.choice(len(COLORS))]
    return _line("colors", [_clause(index, color=color)], f"{_a(color)} {CLASSES[index]}")


def _position(rng: np.random.Generator) -> dict[str, Any]:
    """Both classes, then the relation; the clause of the second comes first, for the first refers to it."""
    one, other = rng.choice(len(CLASSES), size=2, replace=False)
    relation = RELATIONS[rng.choice(len(RELATIONS))]
    clauses = [_clause(other), _clause(one, position=[relation, 0])]
    return _line("position", clauses, f"{_a(CLASSES[one])} {relation} {_a(CLASSES[other])}")


def _color_attr(rng: np.random.Generator) -> dict[str, Any]:
    """Both classes (no person), then both colours."""
    one, other = rng.choice(len(CLASSES) - 1, size=2, replace=False) + _FIRST_COLORED
    first, second = rng.choice(len(COLORS), size=2, replace=False)
    clauses = [_clause(one, color=COLORS[first]), _clause(other, color=COLORS[second])]
    return _line("color_attr", clauses, f"{_a(COLORS[first])} {CLASSES[one]} and {_a(COLORS[second])} {CLASSES[other]}")
