"""What ships: a base that knows its world, an image tokenizer that keeps what the judge sees, a demo whose recipe runs on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from unidecouple.cli import main
from unidecouple.convert.load import checkpoint_folder, load
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.generate.image import Sampling, draw
from unidecouple.generate.text import answer
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.shipped import SHIPPED
from unidecouple.world import pope, vqa
from unidecouple.world.geneval import generate_and_score, judge_bounds
from unidecouple.world.judge import TemplateJudge
from unidecouple.world.prompts import held_out
from unidecouple.world.scratch import tokenizer_bounds

DEMO = Path(__file__).parents[1] / "recipes" / "demo.yaml"
Loaded = tuple[UniJanusForConditionalGeneration, SequenceBuilder]


def loaded(name: str) -> Loaded:
    model, processor = load(name)
    return model, SequenceBuilder(processor)


@pytest.fixture(scope="module")
def understanding() -> Loaded:
    return loaded("understanding")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_base_is_small(name: str) -> None:
    assert sum(file.stat().st_size for file in checkpoint_folder(name).iterdir()) < 12e6


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_base_understands(name: str) -> None:
    """Far above POPE's 0.5 and the 0.45 of who answers VQA by the most frequent answer; docs/experiments/ has all scores."""
    base = loaded(name)

    def understood(images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        return answer(*base, images, questions)

    accuracy = [
        next(row.value for row in rows if row.metric == "accuracy")
        for rows in (pope.evaluate(understood, 12, 5, "official"), vqa.evaluate(understood, 40, 5))
    ]
    assert accuracy[0] > 0.93
    assert accuracy[1] > 0.7


@pytest.mark.parametrize(("name", "least", "most"), [("understanding", 0.0, 0.05), ("unified", 0.4, 1.0)])
def test_the_unified_base_alone_draws_what_it_is_asked_for(name: str, least: float, most: float) -> None:
    """On every sixth validation prompt."""
    base, prompts = loaded(name), held_out("val")[0][::6]
    bounds = judge_bounds(TemplateJudge(), prompts)

    def paint(texts: Sequence[str], num_images: int, seed: int) -> list[list[np.ndarray]]:
        return draw(*base, texts, num_images, seed, Sampling(guidance_scale=1.5, temperature=0.7))

    result = generate_and_score(paint, TemplateJudge(), prompts, 1, bounds=bounds)
    assert least <= next(score.value for score in result.scores if score.metric == "overall") <= most


def test_the_image_tokenizer_keeps_what_the_judge_sees(understanding: Loaded) -> None:
    """At least 95% of the judge's ceiling on validation prompts."""
    bounds = tokenizer_bounds(understanding[0])
    assert bounds["through_tokenizer"] >= 0.95 * bounds["ceiling"]


def test_demo_in_small(tmp_path: Path) -> None:
    """The recipe of `make demo`, each run two steps long and scored on little."""
    small = "pairs=24 scenes=24 t2i_batch_size=2 mmu_batch_size=2"
    scored = "pope_images=2 vqa_questions=2 prompts_per_tag=2 num_images=1"
    overrides = [f"run.data.{item}" for item in small.split()] + [f"run.data.evaluation.{item}" for item in scored.split()]
    overrides.append("run.evaluation.eval_steps=0")
    folders = ["--output", str(tmp_path / "demo"), "--cache", str(tmp_path / "cache"), "--workers", "2"]
    assert main(["compare", str(DEMO), "run.max_steps=2", *overrides, *folders]) == 0
    rows = json.loads((tmp_path / "demo" / "results.json").read_text())["rows"]
    assert {row["scenario"] for row in rows} == {"S1-r0", "S1-r16"}
    assert {row["variant"] for row in rows} >= {"start", "dense_t2i", "dense_joint", "unidecouple"}
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "unidecouple" in page.lower()
    assert len(page) > 20_000
