"""GenEval over generated scenes: ground truth gives the ceiling, another prompt's images the floor."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import pytest

from answering_model import Answering
from unidecouple.eval.benchmark import BenchmarkResult, evaluate
from unidecouple.eval.geneval_files import geneval_benchmark
from unidecouple.eval.suite import BenchmarkOptions, SyntheticSizes
from unidecouple.world.geneval import BENCHMARK, judge_bounds
from unidecouple.world.judge import TemplateJudge
from unidecouple.world.prompts import TAGS, Prompt, build, held_out, scene_of, spread
from unidecouple.world.scene import render


def small_set(per_tag: int = 3) -> list[Prompt]:
    """The first prompts of each tag of the validation list (every third, since wordings of one key follow each other)."""
    prompts = held_out("val")[0]
    return [prompt for tag in TAGS for prompt in [p for p in prompts if p.tag == tag][: 3 * per_tag : 3]]


class Oracle:
    """Renders ground truth for the prompts it knows, or for the prompts that follow them (``shift``)."""

    def __init__(self, prompts: Sequence[Prompt], shift: int = 0) -> None:
        self.scenes = {p.text: prompts[(i + shift) % len(prompts)] for i, p in enumerate(prompts)}
        self.rng = np.random.default_rng(1)

    def __call__(self, prompt: str, number: int) -> np.ndarray:
        return render(scene_of(self.scenes[prompt], self.rng))


def score(prompts: Sequence[Prompt], num_images: int, shift: int = 0) -> BenchmarkResult:
    metadata, judge = [prompt.to_json() for prompt in prompts], TemplateJudge()
    bounds = functools.partial(judge_bounds, judge, prompts, num_images=num_images)
    return evaluate(geneval_benchmark(metadata, num_images, judge, bounds), Answering(image_of=Oracle(prompts, shift)))


def test_oracle_reaches_the_ceiling() -> None:
    prompts = small_set()
    result = score(prompts, num_images=2)
    assert [row.metric for row in result.scores] == ["overall", *TAGS, "images", "prompts"]
    assert all(row.judge == "template" and row.value == row.ceiling == 1.0 and row.floor == 0.0 for row in result.scores)
    assert len(result.verdicts) == result.proportions["images"].count == 2 * len(prompts)
    assert result.proportions["prompts"].count == len(prompts)


def test_pictures_of_another_prompt_give_the_floor() -> None:
    result = score(small_set(), num_images=1, shift=1)
    assert all(row.value == row.floor for row in result.scores)
    assert all(verdict.reason for verdict in result.verdicts)


def test_the_benchmark_has_test_prompts_and_bounds_of_its_judge() -> None:
    opened = BENCHMARK.open(BenchmarkOptions(limit=2, sizes=SyntheticSizes(num_images=1)))
    assert [line["prompt"] for line in opened.metadata] == [prompt.text for prompt in spread("test", 2)]  # type: ignore[union-attr]
    result = evaluate(opened, Answering(image_of=Oracle(spread("test", 2))))
    overall = result.scores[0]
    assert (overall.judge, overall.metric, overall.value, overall.ceiling) == ("template", "overall", 1.0, 1.0)
    assert overall.floor is not None
    assert overall.floor < 0.5


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
