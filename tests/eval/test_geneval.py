"""GenEval's rules by hand, its folder layout, and bounds: ground truth gives the ceiling, another prompt's images the floor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unidecouple.eval.geneval import (
    ImageVerdict,
    judge_image,
    read_folder,
    relative_position,
    summarize,
)
from unidecouple.eval.image_folder import write_prompt
from unidecouple.eval.judges import Box, Detection
from unidecouple.world.prompts import TAGS, Prompt, held_out

LEFT: Box = (0, 0, 10, 10)
RIGHT: Box = (40, 0, 50, 10)
BELOW: Box = (0, 40, 10, 50)


def cows(*confidences: float) -> list[Detection]:
    return [Detection("cow", confidence, LEFT) for confidence in confidences]


def metadata(tag: str, *include: dict[str, Any], exclude: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    return {"tag": tag, "prompt": "p", "include": list(include), "exclude": list(exclude)}


def no_color(box: Box) -> str:
    raise AssertionError("colour asked though no clause names one")


def small_set(per_tag: int = 3) -> list[Prompt]:
    """The first prompts of each tag of the validation list (every third, since wordings of one key follow each other)."""
    prompts = held_out("val")[0]
    return [prompt for tag in TAGS for prompt in [p for p in prompts if p.tag == tag][: 3 * per_tag : 3]]


def test_single_object_needs_more_than_the_threshold() -> None:
    line = metadata("single_object", {"class": "cow", "count": 1})
    assert judge_image(cows(0.31), line, no_color) == (True, "")
    assert judge_image(cows(0.3), line, no_color) == (False, "expected cow>=1, found 0")
    assert judge_image([Detection("pig", 1.0, LEFT)], line, no_color) == (False, "expected cow>=1, found 0")


def test_counting_has_its_own_threshold_and_excludes_one_more() -> None:
    line = metadata("counting", {"class": "cow", "count": 2}, exclude=[{"class": "cow", "count": 3}])
    assert judge_image(cows(0.95, 0.91, 0.89), line, no_color) == (True, "")
    assert judge_image(cows(0.95, 0.89, 0.89), line, no_color) == (False, "expected cow>=2, found 1")
    assert judge_image(cows(0.95, 0.91, 0.92), line, no_color) == (False, "expected cow<3, found 3")


def test_at_most_sixteen_boxes_a_class_count() -> None:
    line = metadata("counting", {"class": "cow", "count": 17})
    assert judge_image(cows(*[1.0] * 20), line, no_color) == (False, "expected cow>=17, found 16")


def test_color_is_asked_of_the_most_confident_boxes_only() -> None:
    tones = {LEFT: "red", RIGHT: "blue"}
    found = [Detection("cow", 0.5, LEFT), Detection("cow", 0.8, RIGHT)]
    blue, red = (metadata("colors", {"class": "cow", "count": 1, "color": tone}) for tone in ("blue", "red"))
    assert judge_image(found, blue, tones.__getitem__) == (True, "")
    assert judge_image(found, red, tones.__getitem__) == (False, "expected red cow>=1, found 0 red; and 1 blue")
    two = metadata("colors", {"class": "cow", "count": 2, "color": "red"})
    assert judge_image(found, two, tones.__getitem__) == (False, "expected red cow>=2, found 1 red; and 1 blue, 1 red")


def test_position_refers_to_an_earlier_clause() -> None:
    line = metadata("position", {"class": "pig", "count": 1}, {"class": "cow", "count": 1, "position": ["left of", 0]})
    assert judge_image([Detection("cow", 1.0, LEFT), Detection("pig", 1.0, RIGHT)], line, no_color) == (True, "")
    assert judge_image([Detection("cow", 1.0, BELOW), Detection("pig", 1.0, LEFT)], line, no_color) == (
        False,
        "expected cow left of target, found below target",
    )
    assert judge_image(cows(1.0), line, no_color) == (
        False,
        "expected pig>=1, found 0\nno target for cow to be left of",
    )


@pytest.mark.parametrize(
    ("box", "other", "relations"),
    [
        (LEFT, RIGHT, {"left of"}),
        (RIGHT, LEFT, {"right of"}),
        (LEFT, BELOW, {"above"}),
        (BELOW, LEFT, {"below"}),
        # offset (-40, -40), reduced by .1 * 20 = 2 each: 38 / 56.57 = .67 on both axes
        (LEFT, (40, 40, 50, 50), {"left of", "above"}),
        # offset (-40, -20): 38 / 44.7 = .85 and 18 / 44.7 = .40
        (LEFT, (40, 20, 50, 30), {"left of"}),
        # offset (-4, 0) less .1 * 20 = 2: 2 / 4 = .5, which is not above .5
        (LEFT, (4, 0, 14, 10), set()),
        # offset (-4.1, 0): 2.1 / 4.1 = .512
        (LEFT, (4.1, 0, 14.1, 10), {"left of"}),
        (LEFT, LEFT, set()),
        # offset (-5, 0), sizes 10 and 40: 5 - 5 = 0
        (LEFT, (-10, 0, 30, 10), set()),
    ],
)
def test_relative_position(box: Box, other: Box, relations: set[str]) -> None:
    assert relative_position(box, other) == relations


def test_summary_by_hand() -> None:
    outcomes = {0: ("colors", [True, True]), 1: ("colors", [False, True]), 2: ("counting", [False, False])}
    verdicts = [ImageVerdict(p, i, tag, "", ok, "") for p, (tag, right) in outcomes.items() for i, ok in enumerate(right)]
    assert summarize(verdicts) == pytest.approx(
        {"overall": 0.375, "colors": 0.75, "counting": 0.0, "images": 0.5, "prompts": 2 / 3}
    )


def test_folder_round_trip(tmp_path: Path) -> None:
    lines = [prompt.to_json() for prompt in small_set(1)]
    pictures = [[np.full((4, 6, 3), 10 * p + i, dtype=np.uint8) for i in range(2)] for p in range(len(lines))]
    for number, (line, images) in enumerate(zip(lines, pictures, strict=True)):
        write_prompt(tmp_path / "images", number, line, images)
    assert json.loads((tmp_path / "images/00001/metadata.jsonl").read_text()) == lines[1]
    assert (tmp_path / "images/00005/samples/0001.png").is_file()
    (tmp_path / "images/00001/samples/grid.png").write_bytes(b"")  # the official layout may hold a contact sheet
    (tmp_path / "images/notes").mkdir()
    read_lines, read_pictures = read_folder(tmp_path / "images")
    assert read_lines == lines
    np.testing.assert_array_equal(np.array(read_pictures), np.array(pictures))


def test_folder_without_prompts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no prompt folders"):
        read_folder(tmp_path / "nowhere")
