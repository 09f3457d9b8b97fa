"""Verdicts from a file: what a detector, run elsewhere, found in the images of a folder.

Either the official ``results.jsonl`` of GenEval's ``evaluate_images.py`` (Mask2Former and CLIP on a GPU), whose verdicts stand as
they are, while every prompt that names no colour is judged once more by our rules from the boxes in its "details". Or, from
any other detector, one line per image: {"filename": "00000/samples/0000.png", "detections": [{"class", "score", "box": [left, top,
right, bottom], "color"}]}, judged by our rules; "color" is needed where a prompt names one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unidecouple.eval.benchmark import ImageVerdict, Metadata
from unidecouple.eval.geneval import judge_image
from unidecouple.eval.judges import Box, Detection
from unidecouple.eval.records import BenchmarkRecord, read_records
from unidecouple.inputs import quoted

OFFICIAL: Final = "official results"
_SIDES: Final = ("left", "top", "right", "bottom")
_PLACE = re.compile(r"(?P<prompt>\d+)/samples/(?P<image>\d+)\.png$")


@dataclass(frozen=True)
class JudgedImages:
    """Verdicts of a file, in order of prompt and image.

    Attributes:
        verdicts: one per image.
        judge: ``OFFICIAL`` or "detections".
        disagree: official verdicts that our rules, given the same boxes, do not share.
    """

    verdicts: tuple[ImageVerdict, ...]
    judge: str
    disagree: int = 0


def read_verdicts(path: Path, metadata: Sequence[Metadata], num_images: int) -> JudgedImages:
    """The verdicts that ``path`` gives on ``num_images`` images of each prompt.

    Raises:
        ValueError: a line is broken, has a value that cannot be used, or is of other prompts; an image is missing,
            judged twice, or too many.
    """
    found: dict[tuple[int, int], BenchmarkRecord] = {}
    for row in read_records(path, ("filename",)):
        match = _PLACE.search(row.text("filename").replace("\\", "/"))
        if match is None:
            row.fail(f"{quoted(row['filename'])} is no image of GenEval's layout, such as 00000/samples/0000.png")
        key = (int(match["prompt"]), int(match["image"]))
        if key in found:
            row.fail(f"judges {row['filename']} twice, as {found[key].where} does: join the results of one run only")
        found[key] = row
    wanted = [(prompt, image) for prompt in range(len(metadata)) for image in range(num_images)]
    _same_pictures(path, found, wanted)
    official = found[wanted[0]].has("correct")
    verdicts, disagree = [], 0
    for prompt, image in wanted:
        row, line = found[prompt, image], metadata[prompt]
        if official:
            _same_prompt(row, line)
            correct, reason = row.yes_no("correct") == "yes", str(row.values.get("reason") or "")
            disagree += _judged_again(row, line) not in (correct, None)
        else:
            correct, reason = _judged(row, line)
        verdicts.append(ImageVerdict(prompt, image, line["tag"], line["prompt"], correct, reason))
    return JudgedImages(tuple(verdicts), OFFICIAL if official else "detections", disagree)


def _judged(row: BenchmarkRecord, line: Metadata) -> tuple[bool, str]:
    boxes: list[Detection] = []
    colors: dict[Box, str] = {}
    for number, given in enumerate(row.listed("detections", least=0)):
        entry = BenchmarkRecord(f"{row.where}, detections[{number}]", given if isinstance(given, dict) else {})
        box = _box(entry, entry["box"])
        boxes.append(Detection(entry.text("class"), _finite(entry, "score", entry["score"]), box))
        if entry.has("color"):
            colors[box] = entry.text("color")

    def color(box: Box) -> str:
        if box not in colors:
            row.fail(f"its prompt names a colour, but the detection at {box} has no 'color'; add it")
        return colors[box]

    return judge_image(boxes, line, color)


def _box(row: BenchmarkRecord, given: object) -> Box:
    if not isinstance(given, list) or len(given) < len(_SIDES):
        row.fail(f"the box {quoted(given)} is no list of {', '.join(_SIDES)}")
    left, top, right, bottom = (_finite(row, side, value) for side, value in zip(_SIDES, given, strict=False))
    return left, top, right, bottom


def _finite(row: BenchmarkRecord, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        row.fail(f"{key!r} is {quoted(value)}; give a number")
    return float(value)


def _judged_again(row: BenchmarkRecord, line: Metadata) -> bool | None:
    """Our rules on an official line's boxes; None where a colour would have to be known, or no boxes were kept."""
    if not row.has("details") or any("color" in clause for clause in line["include"]):
        return None
    details = row["details"]
    try:
        details = json.loads(details) if isinstance(details, str) else details
        kept = [(name, box, box[len(_SIDES)]) for name, boxes in details.items() for box in boxes]
    except (ValueError, AttributeError, TypeError, LookupError, RecursionError):
        row.fail(f"'details' is {quoted(details)}; it should hold the boxes of each class, left, top, right, bottom and score")
    boxes = [Detection(name, _finite(row, "score", score), _box(row, box)) for name, box, score in kept]
    return judge_image(boxes, line, lambda box: "")[0]


def _same_prompt(row: BenchmarkRecord, line: Metadata) -> None:
    if row.values.get("prompt", line["prompt"]) != line["prompt"]:
        row.fail(
            f"{row['filename']} was judged for {row['prompt']!r}, but that prompt here is {line['prompt']!r}: "
            "the results are of other prompts"
        )


def _same_pictures(path: Path, found: Iterable[tuple[int, int]], wanted: Sequence[tuple[int, int]]) -> None:
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or extra:
        prompt, image = (missing or extra)[0]
        what = f"lacks {len(missing)}" if missing else f"has {len(extra)} more"
        raise ValueError(
            f"{path} {what} of {len(wanted)} images, first {prompt:05d}/samples/{image:04d}.png: judge that very folder"
        )
