"""GenEval over generated scenes: ground truth gives the ceiling, another prompt's pictures the floor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from unidecouple.eval.geneval import judge_pictures, read_folder
from unidecouple.world.geneval import generate_and_score, judge_bounds
from unidecouple.world.judge import TemplateJudge
from unidecouple.world.prompts import TAGS, Prompt, build, held_out, scene_of
from unidecouple.world.scene import render


def small_set(per_tag: int = 3) -> list[Prompt]:
    """The first prompts of each tag of the validation list (every third, since wordings of one key follow each other)."""
    prompts = held_out("val")[0]
    return [prompt for tag in TAGS for prompt in [p for p in prompts if p.tag == tag][: 3 * per_tag : 3]]


class Oracle:
    """Paints ground truth for the prompts it knows, or for the prompts that follow them (``shift``)."""

    def __init__(self, prompts: Sequence[Prompt], shift: int = 0) -> None:
        self.scenes = {p.text: prompts[(i + shift) % len(prompts)] for i, p in enumerate(prompts)}

    def __call__(self, prompts: Sequence[str], num_images: int, seed: int) -> list[list[np.ndarray]]:
        rng = np.random.default_rng(seed)
        return [[render(scene_of(self.scenes[text], rng)) for _ in range(num_images)] for text in prompts]


def test_oracle_reaches_the_ceiling_and_folder_gives_the_same_verdicts(tmp_path: Path) -> None:
    prompts, judge = small_set(), TemplateJudge()
    result = generate_and_score(Oracle(prompts), judge, prompts, num_images=2, seed=1, folder=tmp_path / "images")
    assert [row.metric for row in result.scores] == ["overall", *TAGS, "images", "prompts"]
    assert all(row.judge == "template" and row.value == row.ceiling == 1.0 and row.floor == 0.0 for row in result.scores)
    assert len(result.verdicts) == 2 * len(prompts)
    assert tuple(judge_pictures(judge, *read_folder(tmp_path / "images"))) == result.verdicts


def test_pictures_of_another_prompt_give_the_floor() -> None:
    prompts, judge = small_set(), TemplateJudge()
    bounds = judge_bounds(judge, prompts, num_images=1)
    result = generate_and_score(Oracle(prompts, shift=1), judge, prompts, num_images=1, bounds=bounds)
    assert all(row.value == row.floor for row in result.scores)
    assert all(verdict.reason for verdict in result.verdicts)


def test_floor_takes_a_prompt_that_asks_for_something_else() -> None:
    # wordings of one key: as "another prompt" they would make the floor a second ceiling
    colors = [build(("colors", name, "red"), wording) for name in ("cow", "cup") for wording in ("a photo of", "a sketch of")]
    assert judge_bounds(TemplateJudge(), colors, num_images=1).floor["colors"] == 0.0
    with pytest.raises(ValueError, match="all prompts of tag 'colors' ask for the same"):
        judge_bounds(TemplateJudge(), colors[:2], num_images=1)


def test_floor_counts_what_two_prompts_share() -> None:
    # three cows satisfy "a cow", one cow does not satisfy "three cows"
    easy = Prompt("mixed", "a cow", (build(("single_object", "cow"), "a photo of").include[0],))
    hard = Prompt("mixed", "three cows", build(("counting", "cow", 3), "a photo of").include)
    bounds = judge_bounds(TemplateJudge(), [easy, hard], num_images=2)
    assert (bounds.ceiling["mixed"], bounds.floor["mixed"]) == (1.0, 0.5)


def test_transform_lowers_the_ceiling_only_by_what_it_destroys() -> None:
    prompts, judge = small_set(), TemplateJudge()

    def grey(batch: np.ndarray) -> np.ndarray:
        assert batch.dtype == np.uint8
        return np.broadcast_to(batch.mean(-1, keepdims=True), batch.shape).astype(np.uint8)

    ceiling = judge_bounds(judge, prompts, num_images=2, transform=grey).ceiling
    assert ceiling["single_object"] == ceiling["two_object"] == ceiling["counting"] == ceiling["position"] == 1.0
    assert ceiling["colors"] < 0.7
