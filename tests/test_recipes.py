"""Every recipe loads; every run that it plans builds from a tiny base and takes a step of each stage."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from own_data import asked, flat, write_jsonl, write_pictures
from published import write_published
from small_runs import FEW, load_copy
from step_settings import UnsavedTrainer, run_stages
from unidecouple import config
from unidecouple.batch import Task
from unidecouple.cli import main
from unidecouple.compare.plan import START, Comparison, jobs
from unidecouple.convert.convert import convert
from unidecouple.convert.load import load
from unidecouple.convert.steps import Conversion
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.data.settings import Files, Source
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.run import RunConfig
from unidecouple.source import data_source
from unidecouple.train.build import add_tokens, apply_structure
from unidecouple.train.stages import Trainer
from unidecouple.train.train import train
from unidecouple.world.scratch import Scratch

RECIPES = Path(__file__).parents[1] / "recipes"
FIELD = RECIPES / "compare" / "field.yaml"
NOT_IN_THE_FIELD = {
    "unifork": "its stages of one task see less than the field's budget; see train/test_stages.py",
    "closing_the_gap": "steps from one method to another, compared in recipes/paper/closing_the_gap.yaml",
}
METHODS = sorted(path for path in (RECIPES / "method").glob("*.yaml") if path.stem not in NOT_IN_THE_FIELD)
COMPARISONS = [RECIPES / "demo.yaml", *sorted((RECIPES / "paper").glob("*.yaml")), FIELD.with_name("own.yaml"), FIELD]
"""Those on the synthetic world; compare/files.yaml runs in test_docs.py."""
JANUS_PRO = sorted(path for path in (RECIPES / "janus_pro").glob("*.yaml") if path.stem not in ("data", "methods"))
EMU3 = sorted(path for path in (RECIPES / "emu3").glob("*.yaml") if path.stem not in ("data", "methods"))
BASES = [RECIPES / "base" / "understanding.yaml", RECIPES / "base" / "unified.yaml"]


@pytest.fixture(scope="session")
def tiny_pro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Janus-Pro as it comes out of ``unidecouple convert``."""
    folder = tmp_path_factory.mktemp("pro")
    convert(write_published(folder / "published"), folder / "ours", Conversion(), lambda line: None)
    return folder / "ours"


def small(run: RunConfig, base: Path) -> RunConfig:
    """``run`` from ``base`` on little data, one step for each stage."""
    sizes = {f"{task.key}_batch_size": min(2, run.data.batch_size(task)) for task in Task}
    pairs = 150 if run.add_tokens else 8  # each new word needs samples of its class
    data = replace(run.data, pairs=pairs, scenes=pairs, evaluation=FEW, **sizes)
    return replace(
        run,
        model_name_or_path=str(base),
        data=data,
        stages=tuple(replace(stage, share=1.0) for stage in run.stages),
        max_steps=len(run.stages),
        logging_steps=1,
        save_steps=0,
        diagnose=False,
        evaluation=replace(run.evaluation, eval_steps=0),
    )


def step_of_each_stage(run: RunConfig, base: Path, cache: Path, folder: Path, trainer: type[Trainer] = UnsavedTrainer) -> int:
    """Run one step of each stage of ``run``, without scores; returns the lines logged."""
    chosen = small(run, base)
    model, processor = load_copy(chosen.model_name_or_path)
    model = add_tokens(model, processor, chosen.add_tokens)
    builder = SequenceBuilder(processor)
    source = data_source(chosen).open(chosen, model, processor, builder, cache, lambda what, done, of: None)
    folder.mkdir(exist_ok=True)
    model = apply_structure(model, chosen.structure, chosen.seed, source)
    run_stages(trainer(chosen, model, processor, source, folder, lambda line: None))
    return len((folder / "metrics.jsonl").read_text().splitlines())


@pytest.mark.parametrize("recipe", BASES, ids=lambda path: path.stem)
def test_base_recipes_take_a_step_and_are_scored(recipe: Path, small_base: Path, small_cache: Path, tmp_path: Path) -> None:
    run = config.load(RunConfig, [recipe])
    train(small(run, small_base), tmp_path, small_cache, lambda line: None, threading.Event())
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(run.stages)


@pytest.mark.slow
def test_comparison_recipes_take_a_step(small_base: Path, small_cache: Path, tmp_path: Path) -> None:
    """Each distinct structure, schedule and task mix of all comparisons, once; what others merge is among them."""
    seen: set[str] = set()
    for recipe in COMPARISONS:
        for job in jobs(config.load(Comparison, [recipe])):
            name = job.variant.split("@")[0]
            kind = f"{name} {job.config.data.mmu_batch_size > 0} {job.config.add_tokens != ()}"
            if name != START and kind not in seen:
                seen.add(kind)
                if job.of:
                    continue  # it needs the models of others; see tests/compare/test_merge.py
                assert step_of_each_stage(job.config, small_base, small_cache, tmp_path / str(len(seen))) == len(
                    job.config.stages
                ), kind
    on_the_way = yaml.safe_load((RECIPES / "method" / "closing_the_gap.yaml").read_text())["variants"].keys()
    other_data = {"no_edits"}
    assert {kind.split()[0] for kind in seen} - on_the_way - other_data == set(config.load(Comparison, [FIELD]).variants), (
        "no other recipe has what the field has not"
    )


def test_the_field_has_every_variant_of_the_methods_recipes() -> None:
    """So all of them take a step above. It changes nothing of theirs but where and at which rates they run."""
    field = config.load(Comparison, [FIELD]).variants
    for recipe in METHODS:
        text = yaml.safe_load(recipe.read_text())
        assert set(text["variants"]) <= set(field), recipe.stem
        for name, given in text["variants"].items():
            assert given["description"] == field[name].description, name


def test_what_variants_of_the_field_share() -> None:
    chosen = {job.variant: job.config for job in jobs(config.load(Comparison, [FIELD])) if job.scenario == "S1-r16"}
    untied = ("mot_modality", "mot_task", "bagel", "unifork", "unix")
    assert {chosen[name].structure.kind for name in untied} == {"mot", "unifork", "unix"}
    assert all(chosen[name].stages == chosen["dense_joint"].stages for name in untied)
    assert chosen["rosetta"].structure.configure(UniLlamaConfig())["group_sizes"] == [1, 1, 2]
    assert chosen["moe"].structure == chosen["symbiotic"].structure  # the control is its first stage gone on with


def test_aligned_variants_take_a_step(small_base: Path, small_cache: Path, tmp_path: Path) -> None:
    """They differ from their plain ones in the loss alone, and both of its terms are in the log."""
    grid = tmp_path / "grid.yaml"
    bases = [str(RECIPES / "method" / name) for name in ("main.yaml", "aia.yaml")]
    scenario = "{description: x, model_name_or_path: unified, t2i_batch_size: 2, mmu_batch_size: 2}"
    grid.write_text(f"base: {bases}\nname: aia\nscenarios: {{S2: {scenario}}}\n")
    runs = {job.variant: job.config for job in jobs(config.load(Comparison, [grid]))}
    for aligned, plain in (("aia_dense", "dense_joint"), ("unidecouple_aia", "unidecouple")):
        assert replace(runs[aligned], objective=runs[plain].objective) == runs[plain]
        folder = tmp_path / aligned
        assert step_of_each_stage(runs[aligned], small_base, small_cache, folder) == len(runs[aligned].stages)
        assert '"loss/aia_mmu"' in (folder / "metrics.jsonl").read_text()
        assert '"loss/aia_t2i"' in (folder / "metrics.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", JANUS_PRO, ids=lambda path: path.stem)
def test_janus_pro_recipes_take_a_step_at_reduced_depth(recipe: Path, tiny_pro: Path, small_cache: Path, tmp_path: Path) -> None:
    step_on_files(recipe, tiny_pro, small_cache, tmp_path)


@pytest.mark.parametrize("recipe", EMU3, ids=lambda path: path.stem)
def test_emu3_recipes_take_a_step_at_reduced_depth(recipe: Path, emu3_base: Path, small_cache: Path, tmp_path: Path) -> None:
    step_on_files(recipe, emu3_base, small_cache, tmp_path)


def step_on_files(recipe: Path, base: Path, small_cache: Path, tmp_path: Path) -> None:
    """Everything as published but sizes; on files, as the recipe's own comment says they look."""
    write_pictures(tmp_path, "a.png", "b.png")
    records = [asked("a.png", "What is this?", "A cat."), flat("b.png", "a red cat")]
    source, held_out = (Source(write_jsonl(tmp_path / f"{n}.jsonl", n * records)) for n in (1, 2))
    loaded = config.load(RunConfig, [recipe])
    assert isinstance(loaded.data, Files)
    sizes = {"mmu_batch_size": min(2, loaded.data.mmu_batch_size), "t2i_batch_size": 2, "max_length": 256}
    chosen = replace(
        loaded,
        model_name_or_path=str(base),
        data=replace(loaded.data, sources=(source,), validation=(held_out,), **sizes),
        stages=tuple(replace(stage, share=1.0) for stage in loaded.stages),
        max_steps=len(loaded.stages),
        logging_steps=1,
        save_steps=0,
        gradient_accumulation_steps=min(2, loaded.gradient_accumulation_steps),
        diagnose=False,
        evaluation=replace(loaded.evaluation, eval_steps=0, eval_batches=1),
        device="cpu",
    )
    train(chosen, tmp_path / "run", small_cache, lambda line: None, threading.Event())
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == len(loaded.stages)


LANGUAGE = RECIPES / "language"


@pytest.mark.slow
def test_a_language_model_learns_images_and_all_three_are_scored(language_base: Path, small_cache: Path, tmp_path: Path) -> None:
    run = config.load(RunConfig, [LANGUAGE / "understanding.yaml"])
    chosen = small(run, language_base)
    chosen = replace(
        chosen, data=replace(chosen.data, evaluation=replace(FEW, passages=2, multiple_choice=2, instructions=2), text_share=0.5)
    )
    train(chosen, tmp_path, small_cache, lambda line: None, threading.Event())
    scored = {row["benchmark"] for row in json.loads((tmp_path / "scores.json").read_text())["scores"]}
    assert scored == {"pope", "vqa", "geneval", "language", "multiple_choice"}
    shown = [row for row in json.loads((tmp_path / "samples.json").read_text()) if row["tag"] == "instruction"]
    assert [set(row) for row in shown] == [{"prompt", "tag", "correct", "reason", "answer"}] * 2
    before, after = (load(str(path))[0].state_dict() for path in (language_base, tmp_path))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    frozen = ("embed_tokens", "lm_head", "vqmodel", "generation_")
    assert any("language_model" in name for name in moved)
    assert not [name for name in moved if any(part in name for part in frozen)]


@pytest.mark.slow
def test_variants_of_the_language_recipe_take_a_step(language_base: Path, small_cache: Path, tmp_path: Path) -> None:
    """Grouped heads and a byte-pair vocabulary in every structure of it."""
    planned = {job.variant: job for job in jobs(config.load(Comparison, [LANGUAGE / "adding_generation.yaml"]))}
    assert set(planned) == {START, "dense_joint", "unidecouple", "symbiotic", "lora_task_held", "decouple_joint_r32"}
    for name, job in planned.items():
        if name != START and job.merge is None:
            assert step_of_each_stage(job.config, language_base, small_cache, tmp_path / name) == len(job.config.stages), name


@pytest.mark.slow
def test_the_language_comparison_in_small(language_base: Path, small_cache: Path, tmp_path: Path) -> None:
    """Dense training with replayed text, and the same model decoupled: five scores at the start, in training and at the end."""
    sizes = "eval_images: 2, eval_prompts: 1, pope_images: 2, vqa_questions: 2, prompts_per_tag: 2, num_images: 1"
    small = [
        "run.max_steps=2",
        "run.data.pairs=8",
        "run.data.scenes=8",
        "run.data.single_object_steps=0",
        "run.evaluation.eval_steps=2",
    ]
    small += [f"run.data.evaluation={{{sizes}, passages: 2, multiple_choice: 2, instructions: 1}}"]
    small += [f"scenarios.{name}.model_name_or_path={language_base}" for name in ("S1-r0", "S1-r8", "S1-r8-text")]
    words = ["compare", str(LANGUAGE / "adding_generation.yaml"), *small, "--output", str(tmp_path), "--cache", str(small_cache)]
    assert main([*words, "--workers", "1", "--only", "scenario=S1-r8-text,variant=decouple_joint_r32,seed=0"]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    found = {(row["variant"], row["benchmark"], row["metric"]): row["value"] for row in rows}
    for benchmark in ("pope", "vqa", "language", "multiple_choice", "geneval"):
        assert {variant for variant, name, _ in found if name == benchmark} >= {START, "decouple_joint_r32"}, benchmark
    for metric in ("log_probability", "perplexity"):  # language is computed by the base's weights
        kept = found["decouple_joint_r32", "language", metric]
        assert kept == pytest.approx(found[START, "language", metric], rel=1e-6)
    curve = {row["benchmark"] for path in tmp_path.rglob("scores.jsonl") for row in map(json.loads, path.read_text().splitlines())}
    assert curve == {"pope", "vqa", "language", "multiple_choice", "geneval"}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "English text" in page
    assert "Multiple choice" in page
    assert "What is the capital of Italy?" in page


def test_tokenizer_recipe_loads() -> None:
    scratch = config.load(Scratch, [RECIPES / "base" / "tokenizer.yaml"])
    assert scratch.tokenizer.steps > 0
