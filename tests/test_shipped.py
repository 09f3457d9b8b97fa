"""What ships: a base that knows its world, an image tokenizer that keeps what the judge sees, a demo whose recipe runs on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unidecouple.cli import main
from unidecouple.convert.load import checkpoint_folder, load
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.eval.benchmark import evaluate
from unidecouple.eval.geneval_files import geneval_benchmark
from unidecouple.eval.model import EvalModel
from unidecouple.generate.sampling import SamplingParams
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.shipped import SHIPPED
from unidecouple.world.judge import TemplateJudge
from unidecouple.world.pope import pope_benchmark
from unidecouple.world.prompts import held_out
from unidecouple.world.scratch import tokenizer_bounds
from unidecouple.world.vqa import vqa_benchmark

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
    model = EvalModel(*load(name), max_new_tokens=6)
    results = [evaluate(benchmark, model) for benchmark in (pope_benchmark(12, 5), vqa_benchmark(40, 5))]
    accuracy = [next(row.value for row in result.scores if row.metric == "accuracy") for result in results]
    assert accuracy[0] > 0.93
    assert accuracy[1] > 0.7


@pytest.mark.parametrize(("name", "least", "most"), [("understanding", 0.0, 0.05), ("unified", 0.4, 1.0)])
def test_the_unified_base_alone_draws_what_it_is_asked_for(name: str, least: float, most: float) -> None:
    """On every sixth validation prompt."""
    metadata = [prompt.to_json() for prompt in held_out("val")[0][::6]]
    model = EvalModel(*load(name), sampling=SamplingParams(guidance_scale=1.5, temperature=0.7))
    result = evaluate(geneval_benchmark(metadata, 1, TemplateJudge()), model)
    assert least <= next(score.value for score in result.scores if score.metric == "overall") <= most


@pytest.mark.slow
def test_the_image_tokenizer_keeps_what_the_judge_sees(understanding: Loaded) -> None:
    """At least 95% of the judge's ceiling on validation prompts."""
    bounds = tokenizer_bounds(understanding[0])
    assert bounds["through_tokenizer"] >= 0.95 * bounds["ceiling"]


@pytest.mark.slow
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
