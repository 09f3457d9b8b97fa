"""Gradient conflict against gradients taken by hand: the cosine, its noise floor, the ratio, and what is left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unidecouple.batch import Batch, JointBatch, Task
from unidecouple.convert.load import load
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.diagnose.gradient_conflict import Conflict, gradient_conflict
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.world.batches import world_batches
from unidecouple.world.settings import SyntheticData

MakeModel = Callable[..., UniJanusForConditionalGeneration]
Joint = tuple[Batch, Batch]


def alone(batch: Batch, row: int) -> JointBatch:
    """One row of ``batch``, with its image if it has one."""
    columns = {name: column for name, column in vars(batch).items() if isinstance(column, Tensor) and name != "position_ids"}
    return (Batch(**{"pixel_values": None} | {name: column[row : row + 1] for name, column in columns.items()}),)


def by_hand(model: UniJanusForConditionalGeneration, batch: JointBatch, task: Task, name: str) -> Tensor:
    model.zero_grad()
    model(batch=batch).loss(task).backward()
    grad = model.get_parameter(name).grad
    assert grad is not None
    model.zero_grad()
    return grad.flatten().clone()


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def row_of(rows: list[Conflict], layer: int, part: str) -> Conflict:
    return next(row for row in rows if (row.layer, row.part) == (layer, part))


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("q_proj", "model.language_model.layers.1.self_attn.q_proj.weight"),
        ("down", "model.language_model.layers.1.mlp.down_proj.weight"),
    ],
)
def test_cosine_floor_and_ratio_by_hand(make_model: MakeModel, joint_batch: Joint, part: str, name: str) -> None:
    """Each task has two batches, its two rows: one pair within each task, two pairs across."""
    model = make_model()
    found = row_of(gradient_conflict(model, lambda task, number: alone(joint_batch[task], number), batches=1), 1, part)
    mmu, t2i = ([by_hand(model, alone(joint_batch[task], row), task, name) for row in range(2)] for task in Task)
    across = [cosine(a, b) for a, b in zip(mmu, t2i, strict=True)]
    within = [cosine(*mmu), cosine(*t2i)]
    assert found.cosine == pytest.approx(sum(across) / 2, abs=1e-5)
    assert found.cosine_std == pytest.approx(abs(across[0] - across[1]) / 2**0.5, abs=1e-5)
    assert found.floor == pytest.approx(sum(within) / 2, abs=1e-5)
    ratios = sorted(float(b.norm() / a.norm()) for a, b in zip(mmu, t2i, strict=True))
    assert ratios[0] <= found.norm_ratio <= ratios[1]


def test_equal_batches_have_a_floor_of_one(make_model: MakeModel, joint_batch: Joint) -> None:
    """Without sampling noise two gradients of one task are parallel, while those of the tasks are not."""
    rows = gradient_conflict(make_model(), lambda task, number: (joint_batch[task],), batches=2)
    for row in rows:
        assert row.floor == pytest.approx(1.0, abs=1e-5)
        assert row.floor_std == pytest.approx(0.0, abs=1e-5)
        assert abs(row.cosine) < 0.99


def test_one_loss_under_two_names_is_no_conflict(make_model: MakeModel, joint_batch: Joint) -> None:
    """With equal heads and equal targets the tasks' gradients are one; with the heads as they are they differ."""
    model = make_model()
    both = replace(
        joint_batch[1], labels=joint_batch[1].image_tokens.clamp_min(0).masked_fill(joint_batch[1].image_tokens < 0, -100)
    )
    with torch.no_grad():
        vocabulary = model.lm_head.weight.shape[0]
        head = torch.randn(vocabulary, model.lm_head.weight.shape[1], generator=torch.Generator().manual_seed(0))
        model.lm_head.weight.copy_(head)

    def loss_of(task: Task, number: int) -> JointBatch:
        return (both,)

    same = [row.cosine for row in gradient_conflict(model, loss_of, batches=1)]
    model.model.generation_head = torch.nn.Linear(head.shape[1], vocabulary, bias=False)
    with torch.no_grad():
        model.model.generation_head.weight.copy_(head)
    aligned = [row.cosine for row in gradient_conflict(model, loss_of, batches=1)]
    assert min(aligned) == pytest.approx(1.0, abs=1e-4), "one loss under two names"
    assert max(same) < 0.99


ATTENTION, FFN = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate", "up", "down"}
EXPERTS = {"experts in", "experts out", "expert router"}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ({}, [ATTENTION | FFN] * 2),
        ({"ffn": "ta_moe"}, [ATTENTION | FFN] * 2),
        ({"ffn": "ta_moe", "shared_expert": False}, [ATTENTION] * 2),
        ({"ffn": "moe"}, [ATTENTION | FFN | EXPERTS] * 2),
        ({"ffn": "moe", "shared_expert": False, "moe_layers": [1]}, [ATTENTION | FFN, ATTENTION | EXPERTS]),
        ({"ffn": "typed_moe", "group_by": "task", "shared_expert": False}, [ATTENTION] * 2),
        ({"ffn": "typed_moe", "group_by": "image_out", "shared_expert": False, "group_sizes": [3, 1]}, [ATTENTION | EXPERTS] * 2),
        ({"per_group_layers": [1], "per_group_norm": True, "group_by": "task"}, [ATTENTION | FFN, set()]),
        ({"per_group_layers": [0, 1], "per_group_norm": True, "group_by": "task"}, [set()] * 2),
        ({"per_group_layers": [0, 1], "group_by": "image_out"}, [ATTENTION | FFN] * 2),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",  # sets have no order that two processes share
)
def test_only_weights_that_both_tasks_use_are_measured(
    make_model: MakeModel, joint_batch: Joint, kind: dict[str, Any], expected: list[set[str]]
) -> None:
    """In the decoder's layers, not the vision tower's."""
    rows = gradient_conflict(make_model(**kind), lambda task, number: (joint_batch[task],), batches=1)
    assert [{row.part for row in rows if row.layer == layer} for layer in (0, 1)] == expected
    assert len(rows) == sum(map(len, expected))


@pytest.mark.parametrize(
    ("kind", "part", "name", "rows"),
    [
        ({"ffn": "moe"}, "experts in", "mlp.experts.gate_up_proj", slice(None)),
        ({"ffn": "typed_moe", "group_by": "image_out", "group_sizes": [3, 1]}, "experts out", "mlp.experts.down_proj", slice(3)),
        ({"ffn": "typed_moe", "group_by": "image_out", "group_sizes": [3, 1]}, "expert router", "mlp.gate.weight", slice(3)),
        ({"per_group_layers": [0, 1], "group_by": "image_out"}, "k_proj", "self_attn.k_proj.weight", slice(1)),
        ({"per_group_layers": [0, 1], "group_by": "modality"}, "k_proj", "self_attn.k_proj.weight", slice(None)),
    ],
    ids=str,
)
def test_of_a_stack_the_rows_that_both_tasks_use_are_compared(
    make_model: MakeModel, joint_batch: Joint, kind: dict[str, Any], part: str, name: str, rows: slice
) -> None:
    model = make_model(**kind)
    found = row_of(gradient_conflict(model, lambda task, number: (joint_batch[task],), batches=1), 0, part)
    path = f"model.language_model.layers.0.{name}"
    shape = model.get_parameter(path).shape
    mmu, t2i = (by_hand(model, (joint_batch[task],), task, path).view(shape)[rows].flatten() for task in Task)
    assert found.cosine == pytest.approx(cosine(mmu, t2i), abs=1e-5)
    assert found.norm_ratio == pytest.approx(float(t2i.norm() / mmu.norm()), rel=1e-4)


def test_a_weight_that_a_task_never_reaches_has_no_row(make_model: MakeModel, joint_batch: Joint) -> None:
    """One group of experts, but what a task's gradient is zero in, its steps cannot hurt."""
    model = make_model(ffn="moe", shared_expert=False)
    with torch.no_grad():
        model.decoder.layers[1].mlp.experts.down_proj.zero_()  # so nothing before it in its expert has a gradient
    rows = gradient_conflict(model, lambda task, number: (joint_batch[task],), batches=1)
    assert {row.part for row in rows if row.layer == 1} == ATTENTION | {"experts out"}


def test_the_model_is_left_as_it_was(make_model: MakeModel, joint_batch: Joint) -> None:
    model = make_model()
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = gradient_conflict(model, lambda task, number: (joint_batch[task],), batches=1)
    assert all(row.norm_ratio > 0 for row in rows), "frozen weights are measured too"
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == ["lm_head.weight"]
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_base_made_from_a_language_model(language_base: Path, small_cache: Path, enliven: Callable[..., None]) -> None:
    """Grouped key/value heads: a cosine per projection of each layer, as by hand; text alone has gradients, too."""
    model, processor = load(str(language_base))
    enliven(model, 0)
    data = SyntheticData(pairs=8, scenes=8, mmu_batch_size=1, t2i_batch_size=1, text_share=1.0)
    source = world_batches(data, model, SequenceBuilder(processor), 0, small_cache, lambda *_: None)
    batches = {task: [source.batch(step, tasks=(task,)) for step in range(2)] for task in Task}
    rows = gradient_conflict(model, lambda task, number: batches[task][number], batches=1)
    assert {row.layer for row in rows if row.layer is not None} >= {0, 1}
    name = "model.language_model.layers.1.self_attn.k_proj.weight"
    assert model.get_parameter(name).shape == (16, 48)
    mmu, t2i = ([by_hand(model, one, task, name) for one in batches[task]] for task in Task)
    found = row_of(rows, 1, "k_proj")
    assert found.cosine == pytest.approx(sum(cosine(a, b) for a, b in zip(mmu, t2i, strict=True)) / 2, abs=1e-5)
