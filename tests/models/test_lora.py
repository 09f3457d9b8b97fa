"""Low-rank updates: what they compute, whom they touch, and that a fresh one changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unidecouple.batch import Batch, Task
from unidecouple.methods.objective import Microbatch, Objective
from unidecouple.methods.stage import Lora
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.lora import LoraLinear, MixedLoraLinear
from unidecouple.train.build import add_lora
from unidecouple.train.parallel import Parallel
from unidecouple.train.step import count_totals

GROUP = torch.tensor([0, 1, 1, 0, 1])
MakeModel = Callable[..., UniJanusForConditionalGeneration]


@pytest.fixture
def linear(enliven: Callable[[nn.Module, int], None]) -> Callable[[int], LoraLinear]:
    def make(groups: int) -> LoraLinear:
        layer = LoraLinear(8, 6, bias=True, groups=groups, rank=3, scale=2.0)
        enliven(layer, 0)
        return layer

    return make


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("groups", [0, 1, 2])
def test_a_fresh_pair_changes_nothing(x: torch.Tensor, groups: int) -> None:
    layer = LoraLinear(8, 6, bias=True, groups=groups, rank=3, scale=2.0)
    assert torch.equal(layer(x, GROUP), F.linear(x, layer.weight, layer.bias))
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"] + ["lora_A", "lora_B"] * (groups > 0)
    if groups:
        assert layer.lora_A.any()  # else no gradient would ever reach B


@pytest.mark.parametrize("kind", ["interaction", "modality"])
def test_several_updates_by_hand(enliven: Callable[[nn.Module, int], None], x: torch.Tensor, kind: str) -> None:
    """Token by token: softmax(R x) weighs three pairs, with one A for all or one each; MoDE's image tokens have a fourth alone."""
    config = UniLlamaConfig(
        lora_rank=2, lora_alpha=4.0, lora_targets=["mlp"], lora_kind=kind, lora_experts=3, group_by="modality", num_hidden_layers=1
    )
    layer = MixedLoraLinear(config, 8, 6, bias=True)
    plain = F.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer(x, GROUP), plain)
    assert layer.lora_R.any()  # equal weights would keep the B's equal
    enliven(layer, 0)
    expected = F.linear(x, layer.weight, layer.bias)
    for number, (token, group) in enumerate(zip(x, GROUP.tolist(), strict=True)):
        weights = (layer.lora_R @ token).softmax(-1)
        if kind == "interaction":
            update = sum(weights[i] * (layer.lora_B[i] @ (layer.lora_A[0] @ token)) for i in range(3))
        else:
            text = sum(weights[i] * (layer.lora_B[i] @ (layer.lora_A[i] @ token)) for i in range(3))
            update = layer.lora_B[3] @ (layer.lora_A[3] @ token) if group else text
        expected[number] += 2 * update
    torch.testing.assert_close(layer(x, GROUP), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer(x.view(1, 5, 8), GROUP.view(1, 5)), expected.view(1, 5, 6), atol=1e-5, rtol=1e-5)
    if kind == "modality":
        assert torch.equal(layer(x, None), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("groups", [1, 2])
def test_update_by_hand(linear: Callable[[int], LoraLinear], x: torch.Tensor, groups: int) -> None:
    layer = linear(groups)
    pair = GROUP if groups == 2 else torch.zeros_like(GROUP)
    update = torch.stack([layer.lora_B[g] @ layer.lora_A[g] @ token for g, token in zip(pair.tolist(), x, strict=True)])
    torch.testing.assert_close(layer(x, GROUP), F.linear(x, layer.weight, layer.bias) + 2 * update, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer(x.view(1, 5, 8), GROUP.view(1, 5)), layer(x, GROUP).view(1, 5, 6))


def test_without_a_group_only_a_shared_pair_acts(linear: Callable[[int], LoraLinear], x: torch.Tensor) -> None:
    for groups in (1, 2):
        layer = linear(groups)
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias)) == (groups == 2)


@pytest.mark.parametrize("task", list(Task))
def test_pairs_have_separate_gradients(linear: Callable[[int], LoraLinear], x: torch.Tensor, task: Task) -> None:
    layer = linear(2)
    (layer(x, GROUP)[task == GROUP] ** 2).sum().backward()
    for pair in (layer.lora_A, layer.lora_B):
        assert pair.grad[task].any()
        assert not pair.grad[1 - task].any()


@pytest.mark.parametrize(
    ("ffn", "per_task"),
    [("dense", ()), ("moe", ()), ("ta_moe", ()), ("dense", ("attention", "mlp")), ("ta_moe", ("attention", "shared_expert"))],
)
def test_a_fresh_adapter_on_a_model_changes_nothing(
    make_model: MakeModel, joint_batch: tuple[Batch, Batch], ffn: str, per_task: tuple[str, ...]
) -> None:
    model = make_model(ffn=ffn)
    lora = Lora(
        r=4, targets=("attention", "mlp") if ffn == "dense" else ("attention", "experts", "shared_expert"), per_task=per_task
    )
    adapted = add_lora(model, lora, seed=0)
    added = {name for name, _ in adapted.named_parameters()} - {name for name, _ in model.named_parameters()}
    layers = 2 * (4 + (3 if ffn == "dense" else 5))  # four projections; three of an FFN; with experts, two stacks more
    assert len(added) == 2 * layers
    assert all("lora" in name for name in added)
    for batch in joint_batch:
        assert torch.equal(adapted.decode_batch(batch).last_hidden_state, model.decode_batch(batch).last_hidden_state)
    with pytest.raises(ValueError, match="LoRA already"):
        add_lora(adapted, lora, seed=0)


@pytest.mark.parametrize("routing", ["learned", "label"])
def test_each_task_has_its_own_update_in_a_dense_model(
    make_model: MakeModel, joint_batch: tuple[Batch, Batch], routing: str
) -> None:
    """Nothing there learns to route, so tokens are labelled with their task either way, and without it there is no answer."""
    targets = ["attention", "mlp"]
    model = make_model(task_routing=routing, lora_rank=4, lora_targets=targets, lora_per_task=targets)
    with pytest.raises(ValueError, match="weights per 'task' need task_ids of every token"):
        model.decoder(input_ids=joint_batch[0].input_ids)
    alone = [replace(batch, task_ids=torch.full_like(batch.task_ids, task)) for task, batch in zip(Task, joint_batch, strict=True)]
    before = [model.decode_batch(batch).last_hidden_state for batch in alone]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight[Task.T2I] *= 2
    after = [model.decode_batch(batch).last_hidden_state for batch in alone]
    assert torch.equal(before[Task.MMU], after[Task.MMU])
    assert not torch.allclose(before[Task.T2I], after[Task.T2I], atol=1e-2)


@torch.no_grad()
def test_attention_follows_where_the_layer_before_sent_a_token(make_model: MakeModel, joint_batch: tuple[Batch, Batch]) -> None:
    """With the learned router no layer precedes the first, so its attention keeps to the shared weights."""
    model = make_model(ffn="ta_moe", lora_rank=4, lora_targets=["attention"], lora_per_task=["attention"])
    first, second = model.decoder.layers
    first.mlp.router.weight.zero_()  # all to understanding
    before = model.decode_batch(joint_batch[1]).last_hidden_state
    for layer, task, matters in (
        (first, Task.MMU, False),
        (first, Task.T2I, False),
        (second, Task.T2I, False),
        (second, Task.MMU, True),
    ):
        layer.self_attn.v_proj.lora_B[task] *= 2
        after = model.decode_batch(joint_batch[1]).last_hidden_state
        assert torch.equal(before, after) != matters


@pytest.mark.parametrize("ffn", ["moe", "ta_moe"])
def test_routers_are_updated_and_learn(make_model: MakeModel, joint_batch: tuple[Batch, Batch], ffn: str) -> None:
    """A fresh update changes nothing; then the group loss reaches W_task's, and the outputs W_e's."""
    model = make_model(ffn=ffn)
    adapted = add_lora(model, Lora(r=3, targets=("router",)), seed=0)
    for batch in joint_batch:
        assert torch.equal(adapted.decode_batch(batch).last_hidden_state, model.decode_batch(batch).last_hidden_state)
    adapted.requires_grad_(False)
    moving = {name: weight.requires_grad_() for name, weight in adapted.named_parameters() if "lora" in name}
    assert {name.split(".")[-2] for name in moving} == {"gate", *(["router"] if ffn == "ta_moe" else [])}
    totals = count_totals([joint_batch], Parallel())
    Objective().losses(Microbatch(joint_batch, adapted(batch=joint_batch), list(Task), totals)).total.backward()
    assert [name for name, weight in moving.items() if name.endswith("lora_B") and not weight.grad.any()] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"ffn": "dense", "lora_targets": ["experts"]}, "'experts' is not in a model with ffn='dense'"),
        ({"ffn": "ta_moe", "lora_targets": ["mlp"]}, "'mlp' is not in a model with ffn='ta_moe'"),
        ({"ffn": "ta_moe", "shared_expert": False, "lora_targets": ["shared_expert"]}, "it has attention, experts, router$"),
        ({"ffn": "dense", "lora_targets": ["router"]}, "'router' is not in a model with ffn='dense'"),
        ({"ffn": "ta_moe", "lora_targets": ["router"], "lora_per_task": ["router"]}, "what tells the tasks apart"),
        ({"ffn": "moe", "lora_targets": ["attention"], "lora_per_task": ["attention"]}, "knows no task to route by"),
    ],
)
def test_updates_that_would_do_nothing_are_refused(text: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        UniLlamaConfig(lora_rank=4, **text)
