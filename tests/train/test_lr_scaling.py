"""Rates by group of tokens: the optimizer's steps scaled row by row, exactly what AdamW does at that rate."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from step_settings import step_settings
from unidecouple.batch import Batch, Task
from unidecouple.methods.gradient import PCGrad, Sum
from unidecouple.methods.objective import Losses, Objective
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.sharing import weights_and_group_rows
from unidecouple.train.gradients import Gradients
from unidecouple.train.lr_scaling import ScaledRows, install_lr_scaling, scaled_rows
from unidecouple.train.parallel import Parallel
from unidecouple.train.step import train_step
from unidecouple.train.trainable import make_param_groups, table

MakeModel = Callable[..., UniJanusForConditionalGeneration]

KINDS: list[dict[str, Any]] = [
    {"ffn": "typed_moe", "group_by": "image_out", "group_sizes": [3, 1]},
    {"ffn": "typed_moe", "group_by": "type", "num_experts": 6},
    {"ffn": "ta_moe", "lora_rank": 4, "lora_targets": ["experts", "attention"], "lora_per_task": ["attention"]},
    {"per_group_layers": [0, 1], "per_group_norm": True, "group_by": "image_out"},
    {"per_group_layers": [1], "group_by": "modality"},
]
FIRST = ("und", "text", "mmu", "und", "text")


def stepped(model: nn.Module, rates: dict[str, float], factor: float = 1.0, steps: int = 1) -> dict[str, Tensor]:
    """Weights of a copy of ``model`` after some steps of AdamW on gradients that do not depend on it."""
    model = copy.deepcopy(model)
    groups = make_param_groups(model, {"*": 1.0}, factor * 1e-2)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.1)
    install_lr_scaling(optimizer, scaled_rows(model, rates))
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for weight in model.parameters():
            if weight.requires_grad:
                weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return dict(model.named_parameters())


@pytest.mark.parametrize(("kind", "group"), [*zip(KINDS, FIRST, strict=True)], ids=str)
@torch.no_grad()
def test_rows_move_by_exactly_the_factor(make_model: MakeModel, kind: dict[str, Any], group: str) -> None:
    model = make_model(**kind)
    start = dict(model.named_parameters())
    full, slower, held = (stepped(model, rates) for rates in ({}, {group: 0.01}, {group: 0.0}))
    names = {id(weight): name for name, weight in start.items()}
    grouped = {names[id(weight)]: rows for weight, rows in weights_and_group_rows(model)}
    assert len(grouped) >= 4
    for name, rows in grouped.items():
        weight, mine, others = start[name], slice(rows[0].start, rows[0].stop), slice(rows[0].stop, None)
        moved = (full[name] - weight)[mine]
        assert moved.abs().min() > 1e-3
        torch.testing.assert_close((slower[name] - weight)[mine], 0.01 * moved, rtol=0, atol=3e-7)  # float32 steps near 1
        assert torch.equal(held[name][mine], weight[mine])
        assert torch.equal(slower[name][others], full[name][others])
    assert all(torch.equal(slower[name], full[name]) for name in start.keys() - grouped.keys())


@torch.no_grad()
def test_it_is_adamw_at_that_rate(make_model: MakeModel) -> None:
    """Over several steps, weight decay included."""
    model = make_model(**KINDS[0])
    grouped, whole = stepped(model, {"und": 0.1}, steps=5), stepped(model, {}, factor=0.1, steps=5)
    name = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    torch.testing.assert_close(grouped[name][:3], whole[name][:3], rtol=0, atol=1e-6)
    assert (grouped[name][3] - whole[name][3]).abs().max() > 1e-2


def test_every_group_has_its_own(make_model: MakeModel) -> None:
    model = make_model(**KINDS[1])
    name = "model.language_model.layers.1.mlp.experts.down_proj"
    start = model.get_parameter(name)
    moved = (stepped(model, {"text": 0.5, "image_in": 0.0, "image_out": 2.0})[name] - start).detach().flatten(1).norm(dim=1)
    full = (stepped(model, {})[name] - start).detach().flatten(1).norm(dim=1)
    torch.testing.assert_close(moved / full, torch.tensor([0.5, 0.5, 0, 0, 2, 2]), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("kind", "rates", "said"),
    [
        (KINDS[0], {"mmu": 0.1}, "'mmu' is no group of this model's weights; it has und, gen"),
        ({}, {"und": 0.1}, "it has none"),
        ({"ffn": "moe"}, {"und": 0.1}, "it has none"),
    ],
)
def test_groups_that_are_not_there(make_model: MakeModel, kind: dict[str, Any], rates: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        scaled_rows(make_model(**kind), rates)


@pytest.mark.parametrize(
    ("kind", "gradient"),
    [(KINDS[0], Sum()), (KINDS[0], PCGrad(parameters=("norms",))), (KINDS[3], Sum())],  # of tied norms, which are not held
    ids=["experts-sum", "experts-pcgrad", "layers-sum"],
)
def test_what_is_held_has_no_share_in_the_norm_that_is_clipped(
    make_model: MakeModel, joint_batch: tuple[Batch, Batch], kind: dict[str, Any], gradient: Sum | PCGrad
) -> None:
    """The norm is that of all gradients but those of the held rows, and the step is the one that it allows."""
    train = {"experts": 1, "expert_router": 1, "norms": 1} if "ffn" in kind else {"attention": 1, "ffn": 1, "norms": 1}
    norms, left = {}, {}
    for held in (False, True):
        model = make_model(**kind).train()
        optimizer = torch.optim.SGD(make_param_groups(model, dict(train), 0.0))
        rates = scaled_rows(model, {"und": 0.0} if held else {})
        gradients = Gradients.of(model, gradient, Parallel(), rates)
        objective = Objective(auxiliary=())
        result = train_step(model, optimizer, [joint_batch], step_settings(objective, tuple(Task), None, 1e9, gradients))
        norms[held] = result.grad_norm
        rows = [
            weight.grad[rows[0].start : rows[0].stop] for weight, rows in weights_and_group_rows(model) if weight.grad is not None
        ]
        left[held] = torch.cat([row.flatten() for row in rows]).norm().item()
    assert left[True] == 0
    assert 0.1 * norms[False] < left[False]
    assert norms[True] ** 2 == pytest.approx(norms[False] ** 2 - left[False] ** 2, rel=1e-4)


def test_what_is_held_has_no_say_in_what_others_do() -> None:
    """Rows 0 and 1 oppose, all else agrees: with them held there is no conflict, and PCGrad's direction is the sum."""
    weight, other = nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(5))
    rows, ones = torch.ones(4, 3), torch.ones(5)
    against = torch.cat([torch.full((2, 3), -9.0), torch.ones(2, 3)])
    found = {}
    for factor in (1.0, 0.0):
        held = [ScaledRows(weight, range(2), factor)]
        gradients = Gradients(PCGrad(), (weight, other), (0, 1), Parallel(), held)
        sums = [(rows * weight).sum() + (ones * other).sum(), (against * weight).sum() + (ones * other).sum()]
        gradients.backward(Losses({"mmu": sums[0], "t2i": sums[1]}, [(rows * weight).sum()], {}))
        gradients.combine(torch.optim.SGD([weight, other]))
        assert weight.grad is not None
        assert other.grad is not None
        found[factor] = weight.grad.clone(), other.grad.clone()
        weight.grad = other.grad = None
    assert torch.equal(found[0.0][0], torch.tensor([0.0, 0, 3, 3])[:, None].expand(4, 3)), "1 + 1, and 1 of no task's loss"
    assert torch.equal(found[0.0][1], 2 * ones)
    assert not torch.allclose(found[1.0][1], 2 * ones)


def test_a_group_of_which_nothing_trains(make_model: MakeModel) -> None:
    model = make_model(**KINDS[0])
    groups = make_param_groups(model, {"attention": 1.0}, 1e-2)
    with pytest.raises(ValueError, match="nothing of group 'und' trains"):
        scaled_rows(model, {"und": 0.1})
    assert table(model, groups, {"und": 0.01}).endswith("group und      lr x 0.01")
