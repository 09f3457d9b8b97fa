"""What a stage may and may not move."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from small_runs import APART_THEN_JOINT, SMALL, Run, save_small_base
from step_settings import step_settings
from test_recipes import RECIPES, step_of_each_stage
from unidecouple import config
from unidecouple.batch import IGNORE, NO_IMAGE_TOKEN, Task
from unidecouple.compare.budget import cells, check
from unidecouple.compare.plan import Comparison, jobs
from unidecouple.convert.load import load
from unidecouple.convert.stored import all_checkpoints
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.methods.gradient import Gradient, PCGrad, Sum, TorchJDAggregator
from unidecouple.methods.objective import Objective
from unidecouple.methods.stage import Lora, Stage
from unidecouple.methods.structure import Dense, Structure, TaskAwareMoE
from unidecouple.run import RunConfig
from unidecouple.train.build import add_lora, restructure
from unidecouple.train.gradients import Gradients
from unidecouple.train.parallel import Parallel
from unidecouple.train.stages import Trainer
from unidecouple.train.step import TrainingDivergedError, train_step
from unidecouple.train.trainable import make_param_groups, table
from unidecouple.world.batches import WorldBatches, world_batches
from unidecouple.world.catalog import COLORS
from unidecouple.world.scene import CELL_NAMES
from unidecouple.world.settings import CurriculumPhase


def final(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(all_checkpoints(folder)[-1] / "model.safetensors")


@pytest.fixture
def source(small_run: RunConfig, small_cache: Path) -> WorldBatches:
    model, processor = load(small_run.model_name_or_path)
    return world_batches(small_run.data, model, SequenceBuilder(processor), 0, small_cache, lambda what, done, of: None)


@pytest.mark.slow
def test_experts_apart_moves_experts_and_freezes_attention(small_run: RunConfig, run: Run, tmp_path: Path) -> None:
    config = replace(small_run, structure=TaskAwareMoE(), stages=APART_THEN_JOINT[:1])
    run(replace(config, max_steps=0), tmp_path / "start")
    run(config, tmp_path / "end")
    before, after = restructure(load(config.model_name_or_path)[0], config.structure, 0).state_dict(), final(tmp_path / "end")
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert any("experts.gate_up_proj" in name for name in moved)
    assert any("generation_head" in name for name in moved)
    assert not [name for name in moved if "self_attn" in name or "vqmodel" in name or "norm" in name or "shared_expert" in name]


def test_unifork_s_last_stages_move_one_branch_each(small_cache: Path, tmp_path: Path) -> None:
    """The recipe's own stages on a base as deep as the shipped ones: that branch, its final norm and its head, nothing else."""
    grid = tmp_path / "grid.yaml"
    bases = [str(RECIPES / "method" / name) for name in ("main.yaml", "unifork.yaml")]
    scenario = "{description: x, model_name_or_path: unified, t2i_batch_size: 2, mmu_batch_size: 2, data: {single_object_steps: 0}}"
    grid.write_text(
        f"base: {bases}\nname: forked\nscenarios: {{S2: {scenario}}}\nvariants: {{unifork_branches: {{axis: structure}}}}\n"
    )
    comparison = config.load(Comparison, [grid])
    planned = [job for job in jobs(comparison) if job.name in ("dense_joint", "unifork_branches")]
    check(comparison, cells(planned))
    (forked,) = (job.config for job in planned if job.name == "unifork_branches")
    base = save_small_base(tmp_path / "base", replace(SMALL, num_hidden_layers=4))
    assert step_of_each_stage(replace(forked, save_total_limit=9), base, small_cache, tmp_path / "run", Trainer) == 3
    joint, *branches = (load_file(tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors") for step in (1, 2, 3))
    for task, head, before, after in zip(Task, ("lm_head.", "model.generation_head."), (joint, branches[0]), branches, strict=True):
        moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
        of_layers = {name for name in moved if not name.startswith(head)}
        assert moved - of_layers
        assert {name.removeprefix("model.language_model.")[:9] for name in of_layers} == {"layers.2.", "layers.3.", "norm.weig"}
        for name in of_layers:
            assert torch.equal(before[name][1 - task], after[name][1 - task]), name


EXPERTS = (APART_THEN_JOINT[0], replace(APART_THEN_JOINT[1], lora=Lora(4, 8.0, per_task=("attention", "shared_expert"))))
UPDATES = (Stage("LoRA", 1.0, 1e-2, {"generation": 1, "lora": 1}, lora=Lora(4, 8.0, ("attention", "mlp"), ("attention", "mlp"))),)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("structure", "stages"),
    [
        (TaskAwareMoE(task_routing="label"), EXPERTS),
        (TaskAwareMoE(task_routing="label", moe_layers=(1,)), EXPERTS),
        (Dense(), UPDATES),
    ],
    ids=["experts", "experts in a layer", "updates by task"],
)
def test_generation_data_alone_leaves_understanding_bit_for_bit(
    small_run: RunConfig, run: Run, tmp_path: Path, structure: Structure, stages: tuple[Stage, ...]
) -> None:
    config = replace(small_run, structure=structure, data=replace(small_run.data, mmu_batch_size=0), stages=stages)
    run(config, tmp_path)
    after, _ = load(str(all_checkpoints(tmp_path)[-1]))
    before, processor = load(config.model_name_or_path)
    builder = SequenceBuilder(processor)
    ids = torch.tensor([builder.understanding_prompt("Is there a cow in the image?")])
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    task = torch.zeros(1, 1, dtype=torch.long)
    labelled = after(input_ids=ids, pixel_values=picture, task_ids=task).logits
    torch.testing.assert_close(labelled, before(input_ids=ids, pixel_values=picture).logits, atol=1e-5, rtol=0)
    drawn = (name for name, weight in after.named_parameters() if "lora_B" in name and weight[-1].any())
    assert next(drawn), "low-rank updates of generation moved"
    assert not torch.equal(after.model.generation_head.vision_head.weight, before.model.generation_head.vision_head.weight)


@pytest.mark.slow
@pytest.mark.parametrize("lent", [False, True], ids=["first token with its image", "first token with understanding"])
def test_joint_experts_stage_equals_one_task_at_a_time(
    small_run: RunConfig, source: WorldBatches, enliven: Callable[[torch.nn.Module, int], None], lent: bool
) -> None:
    """Eq. 3: with attention frozen and experts apart, joint batches train each group as its task alone would.

    But for the first token, which counts as understanding: a drawing's tokens attend to it, so generation's loss moves the experts
    that made its key and value, and generation learns beside what they have become.
    """
    start = restructure(load(small_run.model_name_or_path)[0], TaskAwareMoE(), 0)
    enliven(start, 0)

    def trained(*tasks: Task) -> torch.Tensor:
        model = copy.deepcopy(start)
        optimizer = torch.optim.AdamW(make_param_groups(model, {"experts": 1}, 1e-3), weight_decay=0.0)
        for step in range(4):
            mmu, t2i = source.batch(step)[:2]
            t2i = t2i if lent else replace(t2i, task_ids=torch.full_like(t2i.task_ids, Task.T2I))
            batch = tuple(part for task, part in zip(Task, (mmu, t2i), strict=True) if task in tasks)
            train_step(model, optimizer, [batch], step_settings(Objective(), tasks, "label", 1e9))
        return model.decoder.layers[0].mlp.experts.down_proj.detach()

    joint, mmu, t2i = trained(*Task), trained(Task.MMU), trained(Task.T2I)
    before = start.decoder.layers[0].mlp.experts.down_proj.detach()
    for mine, alone in ((slice(0, 2), mmu), (slice(2, 4), t2i)):
        moved, apart = ((joint - other)[mine].norm().item() for other in (before, alone))
        assert moved > 0.1
        assert 1e-3 < apart / moved < 0.2 if lent else apart / moved < 1e-5
    assert torch.equal(t2i[:2], before[:2])
    assert torch.equal(mmu[2:], before[2:])


def test_table_counts_what_trains(small_run: RunConfig) -> None:
    model, _ = load(small_run.model_name_or_path)
    lines = table(model, make_param_groups(model, {"attention": 0.5}, 1e-2)).splitlines()
    attention = next(line for line in lines if "attention" in line)
    total = sum(p.numel() for n, p in model.named_parameters() if "self_attn" in n and "language_model" in n)
    assert f"{total:,} of" in " ".join(attention.split())
    assert "5.0e-03" in attention
    assert all("frozen" in line for line in lines if "attention" not in line)


def test_nan_loss_stops_before_any_update(small_run: RunConfig, source: WorldBatches) -> None:
    model, _ = load(small_run.model_name_or_path)
    optimizer = torch.optim.AdamW(make_param_groups(model, {"attention": 1}, 1e-2))
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    before = {name: value.clone() for name, value in model.named_parameters() if "self_attn" in name}
    with pytest.raises(TrainingDivergedError, match="lower learning_rate"):
        train_step(model, optimizer, [source.batch(0)], step_settings(Objective(), tuple(Task), None, 1.0))
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters() if name in before)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", [Sum(), PCGrad(), TorchJDAggregator(name="IMTLG")], ids=lambda g: g.kind)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_before_any_update(
    gradient: Gradient, bad: float, small_run: RunConfig, source: WorldBatches
) -> None:
    """Its losses are; solvers of gradient methods do not come in between."""
    model, _ = load(small_run.model_name_or_path)
    optimizer = torch.optim.AdamW(make_param_groups(model, {"attention": 1}, 1e-2))
    moved = {name: value for name, value in model.named_parameters() if value.requires_grad}
    next(iter(moved.values())).register_hook(lambda found: found * bad)
    before = {name: value.detach().clone() for name, value in moved.items()}
    gradients = Gradients.of(model, gradient, Parallel())
    with pytest.raises(TrainingDivergedError, match=r"gradient is not finite \(norm .*lower learning_rate"):
        train_step(model, optimizer, [source.batch(0)], step_settings(Objective(), tuple(Task), None, 1.0, gradients))
    assert all(torch.equal(before[name], value) for name, value in moved.items())


def test_a_run_that_diverges_keeps_a_checkpoint_that_resumes(small_run: RunConfig, run: Run, tmp_path: Path) -> None:
    """Losses of the second step are finite and its gradient is not: saved, it would replace the one good checkpoint."""
    stages = (Stage(learning_rate=1e3, train={"*": 1.0}, warmup_steps=0),)
    wild = replace(small_run, stages=stages, save_steps=1, save_total_limit=1, max_steps=8)
    for _ in range(2):  # the second attempt resumes
        with pytest.raises(TrainingDivergedError, match="gradient is not finite"):
            run(wild, tmp_path)
        (kept,) = all_checkpoints(tmp_path)
        assert all(value.isfinite().all() for value in load_file(kept / "model.safetensors").values())


def test_nan_in_a_run_keeps_earlier_checkpoints(small_run: RunConfig, run: Run, tmp_path: Path) -> None:
    wild = replace(
        small_run, max_grad_norm=1e30, stages=(Stage(learning_rate=1e18, train={"*": 1.0}, warmup_steps=0),), save_steps=1
    )
    with pytest.raises(TrainingDivergedError):
        run(wild, tmp_path)
    for kept in all_checkpoints(tmp_path):
        load(str(kept))
    assert not (tmp_path / "scores.json").exists()
    assert not list(tmp_path.glob(".*.tmp"))


def test_lora_twice_is_an_error(small_run: RunConfig) -> None:
    model = restructure(load(small_run.model_name_or_path)[0], TaskAwareMoE(), 0)
    once = add_lora(model, Lora(4), 0)
    with pytest.raises(ValueError, match="merge it"):
        add_lora(once, Lora(4), 0)


def test_batches_are_a_function_of_seed_and_step(source: WorldBatches) -> None:
    again, other = source.batch(3), replace(source, seed=1).batch(3)
    for one, two in zip(source.batch(3), again, strict=True):
        assert torch.equal(one.input_ids, two.input_ids)
        assert torch.equal(one.image_tokens, two.image_tokens)
    assert not all(
        one.input_ids.shape == two.input_ids.shape and torch.equal(one.input_ids, two.input_ids)
        for one, two in zip(again, other, strict=True)
    )


def test_tasks_draw_from_streams_of_their_own(source: WorldBatches) -> None:
    """Variants with other mixtures see the same samples of the task they share."""
    alone = replace(source, data=replace(source.data, mmu_batch_size=0))
    assert torch.equal(alone.batch(5)[0].image_tokens, source.batch(5)[1].image_tokens)


def test_router_samples_come_without_understanding_data(source: WorldBatches, small_run: RunConfig) -> None:
    """They are what a run on generation data alone teaches its task router with; only a stage of generation leaves them out."""
    data = replace(source.data, mmu_batch_size=0, router_aux_samples=2)
    for tasks, batches in (("both", 2), ("t2i", 1)):
        config = replace(small_run, data=data, stages=(Stage(tasks=tasks),))
        (part,) = Trainer(config, None, None, replace(source, data=data), Path(), print)._share(0)  # type: ignore[arg-type]
        assert len(part) == batches


def test_lessons_come_one_after_the_other_and_then_conversations(source: WorldBatches) -> None:
    sizes = (("pointing", 1, 3), ("describing", 1, 8), ("asking", 2, 5), ("placing", 1, 7), ("caption", 1, 4), ("presence", 1, 6))
    phases = tuple(CurriculumPhase(*entry) for entry in sizes)
    taught = replace(source, data=replace(source.data, curriculum=phases, t2i_batch_size=0, router_aux_samples=0, turns=3))
    tokenizer = source.builder.tokenizer

    def texts(step: int) -> list[str]:
        (batch,) = taught.batch(step)
        return [tokenizer.decode(row[mask].tolist()) for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]

    assert [len(texts(step)) for step in range(8)] == [3, 8, 5, 5, 7, 4, 6, 2]
    assert not any("<|assistant|>" in text for step in (0, 1) for text in texts(step))
    assert all(text.count("<|assistant|>") == 1 and "? <|assistant|>" in text for step in (2, 3, 4) for text in texts(step))
    assert all(text.endswith(COLORS) for step in (0, 2, 3) for text in texts(step))
    assert all(text.split()[-3] in COLORS for text in texts(1))
    assert {text.split()[-2] in ("top", "bottom") for text in texts(1)} == {True, False}  # either order
    assert all(text.endswith(CELL_NAMES) for text in texts(4))
    assert all(text.count("<|user|>") == 1 and "describe the image" in text for text in texts(5))
    assert all(text.count("is there") == text.count("<|user|>") == 3 for text in texts(6))
    assert all("describe the image" in text for text in texts(7))


def test_drawing_starts_with_single_coloured_objects(source: WorldBatches) -> None:
    simple = replace(
        source, data=replace(source.data, single_object_steps=2, mmu_batch_size=0, router_aux_samples=0, cond_dropout_prob=0.0)
    )

    def prompts(step: int) -> list[str]:
        return [source.builder.tokenizer.decode(row.tolist()) for row in simple.batch(step)[0].input_ids]

    for prompt in [*prompts(0), *prompts(1)]:
        assert sum(prompt.count(name) for name in COLORS) == 1, prompt
        assert " and " not in prompt
    assert any(" and " in prompt or not any(name in prompt for name in COLORS) for step in range(2, 8) for prompt in prompts(step))


def test_router_samples_say_anything_about_a_picture_and_teach_no_answer(source: WorldBatches) -> None:
    alone = replace(source, data=replace(source.data, t2i_batch_size=0, mmu_batch_size=0, router_aux_samples=16))
    said: set[str] = set()
    for step in range(12):
        (batch,) = alone.batch(step)
        assert set(batch.labels.flatten().tolist()) == {IGNORE}
        assert set(batch.image_tokens.flatten().tolist()) == {NO_IMAGE_TOKEN}
        assert set(batch.task_ids.flatten().tolist()) == {Task.MMU}
        assert len(batch.pixel_values) == 16
        for row in batch.input_ids:
            said |= set(source.builder.tokenizer.decode(row.tolist()).split())
    assert said >= {"how", "where", "there", "yes", "zero", "understand", "<|assistant|>"}
    assert "<unk>" not in said


def test_scenes_that_nobody_can_point_at(source: WorldBatches) -> None:
    alone = [scene for scene in source.world.scenes if len(scene.objects) == 1]
    taught = replace(
        source, world=replace(source.world, scenes=alone), data=replace(source.data, curriculum=(CurriculumPhase("asking", 1),))
    )
    with pytest.raises(ValueError, match=r"raise data\.scenes"):
        taught.batch(0)
