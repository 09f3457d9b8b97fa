"""Gradient conflict against gradients taken by hand: the cosine, its noise floor, the ratio, and what is left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unidecouple.batch import Batch, JointBatch, Task
from unidecouple.diagnose.gradient_conflict import PARTS, Conflict, gradient_conflict
from unidecouple.models.janus import UniJanusForConditionalGeneration

MakeModel = Callable[..., UniJanusForConditionalGeneration]
Joint = tuple[Batch, Batch]


def alone(batch: Batch, row: int) -> JointBatch:
    """One row of ``batch``, with its picture if it has one."""
    rows = {name: getattr(batch, name)[row : row + 1] for name in vars(batch) if name not in ("pixel_values", "position_ids")}
    return (Batch(**rows, pixel_values=None if batch.pixel_values is None else batch.pixel_values[row : row + 1]),)


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


@pytest.mark.parametrize("kind", [{}, {"ffn": "ta_moe"}, {"ffn": "ta_moe", "shared_expert": False}])
def test_only_weights_that_both_tasks_use_are_measured(make_model: MakeModel, joint_batch: Joint, kind: dict[str, object]) -> None:
    rows = gradient_conflict(make_model(**kind), lambda task, number: (joint_batch[task],), batches=1)
    attention = {"q_proj", "k_proj", "v_proj", "o_proj"}
    expected = attention if kind.get("shared_expert") is False else set(PARTS.values())
    assert len(rows) == 2 * len(expected), "the decoder's layers, not the vision tower's"
    for layer in (0, 1):
        assert {row.part for row in rows if row.layer == layer} == expected


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
