"""Every recipe loads; every run that it plans builds from a tiny base and takes a step of each stage."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from unidecouple import config
from unidecouple.experiment.plan import START, Experiment, jobs
from unidecouple.run import RunConfig
from unidecouple.train.execute import execute
from unidecouple.train.scratch import Scratch

RECIPES = Path(__file__).parents[1] / "recipes"
EXPERIMENTS = [RECIPES / "demo.yaml", *sorted((RECIPES / "paper").glob("*.yaml"))]
BASES = [RECIPES / "base" / "understanding.yaml", RECIPES / "base" / "unified.yaml"]


def step_of_each_stage(run: RunConfig, base: Path, cache: Path, folder: Path) -> int:
    """Run one step of each stage of ``run`` on little data; returns the lines logged."""
    data = replace(
        run.data, pairs=8, scenes=8, t2i_batch_size=min(2, run.data.t2i_batch_size), mmu_batch_size=min(2, run.data.mmu_batch_size)
    )
    small = replace(
        run,
        model_name_or_path=str(base),
        data=data,
        stages=tuple(replace(stage, share=1.0) for stage in run.stages),
        max_steps=len(run.stages),
        logging_steps=1,
        save_steps=0,
        diagnose=False,
        evaluation=replace(run.evaluation, eval_steps=0, pope_images=2, vqa_questions=2, prompts_per_tag=2, num_images=1),
    )
    execute(small, folder, cache, lambda line: None, threading.Event())
    return len((folder / "metrics.jsonl").read_text().splitlines())


@pytest.mark.parametrize("recipe", BASES, ids=lambda path: path.stem)
def test_base_recipes_take_a_step(recipe: Path, small_base: Path, small_cache: Path, tmp_path: Path) -> None:
    run = config.load(RunConfig, [recipe])
    assert step_of_each_stage(run, small_base, small_cache, tmp_path) == len(run.stages)


def test_experiment_recipes_take_a_step(small_base: Path, small_cache: Path, tmp_path: Path) -> None:
    """Each distinct structure, schedule and task mix of all experiments, once."""
    seen: set[str] = set()
    for recipe in EXPERIMENTS:
        for job in jobs(config.load(Experiment, [recipe])):
            name = job.variant.split("@")[0]
            kind = f"{name} {job.config.data.mmu_batch_size > 0}"
            if name != START and kind not in seen:
                seen.add(kind)
                assert step_of_each_stage(job.config, small_base, small_cache, tmp_path / str(len(seen))) == len(
                    job.config.stages
                ), kind
    assert {kind.split()[0] for kind in seen} >= {"dense_t2i", "dense_joint", "unidecouple", "moe", "true_label", "as_published"}


def test_tokenizer_recipe_loads() -> None:
    scratch = config.load(Scratch, [RECIPES / "base" / "tokenizer.yaml"])
    assert scratch.tokenizer.steps > 0
