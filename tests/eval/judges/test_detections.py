"""Verdicts from files: official results as they are, others by our rules, and how a file may be of other images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from own_data import write_jsonl
from unidecouple.eval.judges.detections import read_verdicts

LINES = [
    {"tag": "two_object", "include": [{"class": "cow", "count": 1}, {"class": "cup", "count": 1}], "prompt": "a cow and a cup"},
    {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}], "prompt": "a red cup"},
]


def official(prompt: int, image: int, correct: bool, **boxes: list[list[float]]) -> dict[str, Any]:
    line = LINES[prompt]
    return {
        "filename": f"out/{prompt:05d}/samples/{image:04d}.png",
        "tag": line["tag"],
        "prompt": line["prompt"],
        "correct": correct,
        "reason": "" if correct else "expected cup>=1, found 0",
        "metadata": json.dumps(line),
        "details": json.dumps(boxes),
    }


def seen(prompt: int, image: int, *found: tuple[str, float, str | None]) -> dict[str, Any]:
    detections = [
        {"class": name, "score": score, "box": [n, 0, n + 9, 9]} | ({"color": color} if color else {})
        for n, (name, score, color) in enumerate(found)
    ]
    return {"filename": f"{prompt:05d}/samples/{image:04d}.png", "detections": detections}


def test_official_results_stand_and_are_judged_again(tmp_path: Path) -> None:
    box = [0.0, 0.0, 9.0, 9.0, 0.9]
    rows = [
        official(1, 0, True, cup=[box]),
        official(0, 0, True, cow=[box], cup=[box]),
        official(0, 1, True, cow=[box]),  # our rules, given these boxes, say no
        official(1, 1, False),
    ]
    judged = read_verdicts(write_jsonl(tmp_path / "results.jsonl", rows), LINES, 2)
    assert [(v.prompt, v.image, v.correct) for v in judged.verdicts] == [(0, 0, True), (0, 1, True), (1, 0, True), (1, 1, False)]
    assert (judged.judge, judged.disagree) == ("official results", 1)


def test_detections_are_judged_by_the_rules(tmp_path: Path) -> None:
    rows = [
        seen(0, 0, ("cow", 0.5, None), ("cup", 0.31, None)),
        seen(0, 1, ("cow", 0.5, None), ("cup", 0.3, None)),
        seen(1, 0, ("cup", 0.9, "red")),
        seen(1, 1, ("cup", 0.9, "blue"), ("cup", 0.8, "red")),
    ]
    judged = read_verdicts(write_jsonl(tmp_path / "seen.jsonl", rows), LINES, 2)
    assert [v.correct for v in judged.verdicts] == [True, False, True, False]
    assert judged.verdicts[3].reason == "expected red cup>=1, found 0 red; and 1 blue"
    assert (judged.judge, judged.disagree) == ("detections", 0)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([seen(0, 0), seen(0, 0)], "judges 00000/samples/0000.png twice"),
        ([seen(0, 0)], "lacks 1 of 2 images, first 00001/samples/0000.png"),
        ([seen(0, 0), seen(1, 0), seen(2, 0)], "has 1 more of 2 images, first 00002"),
        ([{"filename": "cow.png"}], "no image of GenEval's layout"),
        ([seen(0, 0), seen(1, 0, ("cup", 0.9, None))], "has no 'color'"),
        ([official(0, 0, True), official(1, 0, True) | {"prompt": "a blue cup"}], "judged for 'a blue cup'"),
    ],
)
def test_files_of_other_pictures_are_refused(tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_verdicts(write_jsonl(tmp_path / "rows.jsonl", rows), LINES, 1)
