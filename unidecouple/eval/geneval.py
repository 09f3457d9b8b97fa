"""GenEval (arXiv 2310.11513, MIT): does an image show the objects, counts, colours and places its prompt asks for?

The rules, thresholds, folder layout and summary of the official ``evaluate_images.py`` and ``summary_scores.py``; the detector is
any ``Judge``. Deviations: relations in a reason are sorted (a Python set has no order), colours in a reason too, and images
are grouped by prompt number, not by equal metadata. Where true images are known, a score comes with the judge's ceiling (true
images) and floor (the same images, another prompt of the tag).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from unidecouple.eval.benchmark import Images, ImageVerdict, Metadata
from unidecouple.eval.judges import Box, Detection, Judge
from unidecouple.eval.records import BenchmarkRecord, read_records
from unidecouple.inputs import quoted

THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
MAX_PER_CLASS = 16
POSITION_THRESHOLD = 0.1
RELATIONS = ("left of", "right of", "above", "below")
_RELATION_SHARE = 0.5
_NO_OFFSET = 1e-3


@dataclass(frozen=True)
class JudgeBounds:
    """What the judge gives to perfect images and to images of another prompt, by metric (see ``summarize``)."""

    ceiling: Mapping[str, float]
    floor: Mapping[str, float]


def bounds_of(judge: Judge, metadata: Sequence[Metadata], pictures: Images) -> JudgeBounds:
    """Ceiling and floor of ``judge``: ``pictures`` that show what is asked for, judged against their prompt and against another.

    Raises:
        ValueError: a tag whose prompts all ask for the same, so that no other prompt can serve as a floor.
    """
    found = _detect_all(judge, pictures)
    ceiling = _verdicts(judge, metadata, pictures, found)
    floor = _verdicts(judge, [_another(index, metadata) for index in range(len(metadata))], pictures, found)
    return JudgeBounds(summarize(ceiling), summarize(floor))


def judge_pictures(judge: Judge, metadata: Sequence[Metadata], pictures: Images) -> list[ImageVerdict]:
    """Verdict on each image of ``pictures[i]`` against ``metadata[i]``, as ``read_folder`` returns them."""
    return _verdicts(judge, metadata, pictures, _detect_all(judge, pictures))


def summarize(verdicts: Sequence[ImageVerdict]) -> dict[str, float]:
    """The official summary: "overall" (mean of the tags), each tag's share of correct images, "images" and "prompts".

    "images" is the share of correct images, "prompts" the share of prompts with at least one.
    """
    by_tag: dict[str, list[bool]] = {}
    by_prompt: dict[int, list[bool]] = {}
    for verdict in verdicts:
        by_tag.setdefault(verdict.tag, []).append(verdict.correct)
        by_prompt.setdefault(verdict.prompt, []).append(verdict.correct)
    tags = {tag: float(np.mean(correct)) for tag, correct in by_tag.items()}
    images = float(np.mean([verdict.correct for verdict in verdicts]))
    prompts = float(np.mean([any(correct) for correct in by_prompt.values()]))
    return {"overall": float(np.mean(list(tags.values()))), **tags, "images": images, "prompts": prompts}


def judge_image(detections: Sequence[Detection], metadata: Metadata, color: Callable[[Box], str]) -> tuple[bool, str]:
    """The official rules for one image: whether it is correct, and the reasons why not, one per line.

    Args:
        detections: of any confidence and order.
        metadata: include clauses must all hold, each with its ``count`` most confident boxes; no exclude clause may.
        color: names the colour in a box; asked only about boxes whose colour matters.
    """
    found = _confident(detections, COUNTING_THRESHOLD if metadata["tag"] == "counting" else THRESHOLD)
    reasons: list[str] = []
    groups: list[list[Box] | None] = []
    for clause in metadata.get("include", []):
        boxes = found.get(clause["class"], [])[: clause["count"]]
        reason = _unmet(clause, boxes, groups, color)
        groups.append(None if reason else boxes)
        reasons += [reason] if reason else []
    for clause in metadata.get("exclude", []):
        name, count = clause["class"], len(found.get(clause["class"], []))
        if count >= clause["count"]:
            reasons.append(f"expected {name}<{clause['count']}, found {count}")
    return not reasons, "\n".join(reasons)


def relative_position(box: Box, other: Box) -> set[str]:
    """Relations of ``box`` to ``other``: none, one or two of "left of", "right of", "above", "below".

    Each axis of the centres' offset is reduced by 0.1 of the sum of the two sizes, floored at 0, and divided by the length of
    the unreduced offset; a relation holds above 0.5.
    """
    a, b = (np.array(corners, dtype=float).reshape(2, 2) for corners in (box, other))
    offset = a.mean(0) - b.mean(0)
    sizes = np.abs(a[1] - a[0]) + np.abs(b[1] - b[0])
    reduced = np.maximum(np.abs(offset) - POSITION_THRESHOLD * sizes, 0) * np.sign(offset)
    if np.all(np.abs(reduced) < _NO_OFFSET):
        return set()
    dx, dy = reduced / np.linalg.norm(offset)
    holds = {
        "left of": dx < -_RELATION_SHARE,
        "right of": dx > _RELATION_SHARE,
        "above": dy < -_RELATION_SHARE,
        "below": dy > _RELATION_SHARE,
    }
    return {relation for relation, true in holds.items() if true}


def metadata_of(row: BenchmarkRecord) -> Metadata:
    """Check a line of ``evaluation_metadata.jsonl`` and return it.

    Raises:
        ValueError: its tag or prompt is no text, or a clause has no class and count, a colour or a relation that does not exist, or
            a position beside a clause that does not come before it.
    """
    row.text("tag"), row.text("prompt")
    for key in ("include", "exclude"):
        for number, clause in enumerate(row.listed(key) if row.values.get(key) else []):
            if not isinstance(clause, dict):
                row.fail(f"{key}[{number}] is {quoted(clause)}; an object is expected")
            _check_clause(BenchmarkRecord(f"{row.where}, {key}[{number}]", clause), number)
    row.listed("include")
    return row.values


def _check_clause(clause: BenchmarkRecord, number: int) -> None:
    clause.text("class")
    if clause.count("count") < 1:
        clause.fail("'count' is 0; give a whole number from 1 on")
    if "color" in clause.values:
        clause.text("color")
    if "position" in clause.values:
        place = clause.listed("position")
        earlier = len(place) == 2 and type(place[1]) is int and 0 <= place[1] < number
        if not earlier or place[0] not in RELATIONS:
            clause.fail(f"'position' is {quoted(place)}; give one of {', '.join(RELATIONS)} and the number of an earlier clause")


def read_folder(folder: Path) -> tuple[list[Metadata], list[list[np.ndarray]]]:
    """Metadata and images (uint8 (H, W, 3)) of a folder in GenEval's layout, whoever wrote it.

    Raises:
        ValueError: ``folder`` holds no numbered prompt folder, or a prompt has no image, or not one line as ``metadata_of``
            needs it.
    """
    return [metadata_of(read_records(prompt / "metadata.jsonl")[0]) for prompt in _prompt_folders(folder)], read_images(folder)


def read_images(folder: Path) -> list[list[np.ndarray]]:
    """Images of ``read_folder`` alone, of a benchmark whose metadata are not GenEval's; raises as it."""
    pictures = []
    for prompt in _prompt_folders(folder):
        files = sorted(file for file in (prompt / "samples").iterdir() if re.match(r"\d+\.png", file.name))
        if not files:
            raise ValueError(f"{prompt / 'samples'} holds no images such as 0000.png")
        pictures.append([np.asarray(Image.open(file).convert("RGB")) for file in files])
    return pictures


def _prompt_folders(folder: Path) -> list[Path]:
    entries = folder.iterdir() if folder.is_dir() else iter(())
    prompts = sorted((entry for entry in entries if entry.is_dir() and entry.name.isdigit()), key=lambda entry: int(entry.name))
    if not prompts:
        raise ValueError(f"{folder} holds no prompt folders such as 00000; is it GenEval's image folder?")
    return prompts


def _confident(detections: Sequence[Detection], threshold: float) -> dict[str, list[Box]]:
    """Boxes above the threshold by class, most confident first, at most ``MAX_PER_CLASS`` each."""
    found: dict[str, list[Box]] = {}
    for detection in sorted(detections, key=lambda detection: -detection.confidence):
        boxes = found.setdefault(detection.name, []) if detection.confidence > threshold else []
        boxes += [detection.box] if len(boxes) < MAX_PER_CLASS else []
    return found


def _unmet(clause: Metadata, boxes: list[Box], groups: list[list[Box] | None], color: Callable[[Box], str]) -> str:
    """Why an include clause does not hold; empty if it does. ``groups`` are the boxes of earlier clauses that held."""
    name, count = clause["class"], clause["count"]
    if len(boxes) < count:
        return f"expected {name}>={count}, found {len(boxes)}"
    if "color" in clause:
        colors = [color(box) for box in boxes]
        right = colors.count(clause["color"])
        if right < count:
            seen = ", ".join(f"{colors.count(tone)} {tone}" for tone in sorted(set(colors)))
            return f"expected {clause['color']} {name}>={count}, found {right} {clause['color']}; and {seen}"
    if "position" in clause:
        relation, target = clause["position"]
        others = groups[target]
        if others is None:
            return f"no target for {name} to be {relation}"
        for box in boxes:
            for other in others:
                true = relative_position(box, other)
                if relation not in true:
                    return f"expected {name} {relation} target, found {' and '.join(sorted(true))} target"
    return ""


def _detect_all(judge: Judge, pictures: Images) -> list[list[list[Detection]]]:
    """Detections of each image of each prompt, found in one batch."""
    found = iter(judge.detect_batch([image for images in pictures for image in images]))
    return [[next(found) for _ in images] for images in pictures]


def _verdicts(
    judge: Judge,
    metadata: Sequence[Metadata],
    pictures: Images,
    found: Sequence[Sequence[Sequence[Detection]]],
) -> list[ImageVerdict]:
    out: list[ImageVerdict] = []
    for index, (line, images, of_prompt) in enumerate(zip(metadata, pictures, found, strict=True)):
        for number, (image, detections) in enumerate(zip(images, of_prompt, strict=True)):
            correct, reason = judge_image(detections, line, partial(judge.color, image))
            out.append(ImageVerdict(index, number, line["tag"], line["prompt"], correct, reason))
    return out


def _another(index: int, metadata: Sequence[Metadata]) -> Metadata:
    """The next prompt of the same tag, round the list, that asks for something else (wordings of one key follow each other)."""
    mine = metadata[index]
    for line in [*metadata[index + 1 :], *metadata[:index]]:
        if line["tag"] == mine["tag"] and line["include"] != mine["include"]:
            return line
    raise ValueError(f"all prompts of tag {mine['tag']!r} ask for the same; a floor needs at least two that differ")
