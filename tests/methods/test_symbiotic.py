"""Parting a trained mixture by use: the ranking by hand, nothing lost or new, and what holds of the outputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unidecouple.batch import Batch, Modality, Task
from unidecouple.diagnose.routing import expert_usage
from unidecouple.methods.structure import MoE, Symbiotic, TaskAwareMoE
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.train.build import restructure

MakeModel = Callable[..., UniJanusForConditionalGeneration]
Joint = tuple[Batch, Batch]

USED = [torch.tensor([1, 9, 4, 4]), torch.tensor([7, 0, 8, 6])]


@pytest.fixture
def mixture(make_model: MakeModel) -> UniJanusForConditionalGeneration:
    """A plain mixture whose experts differ, as after training."""
    return make_model(ffn="moe")


def test_the_ranking_by_hand() -> None:
    """Two of five for generation: the least used; of two used as often the first stays; inside a group experts keep their order."""
    rows = torch.arange(6.0).view(6, 1)
    name = "m.layers.3.mlp"
    state = {f"{name}.gate.weight": rows.unsqueeze(0), f"{name}.experts.down_proj": 10 * rows.view(6, 1, 1), "lm_head.weight": rows}
    text = UniLlamaConfig(ffn="moe", num_experts=6)
    out = Symbiotic(understanding_share=2 / 3).partition(state, text, [torch.tensor([5, 2, 2, 9, 0, 7])])
    assert out[f"{name}.gate.weight"].flatten().tolist() == [0, 1, 3, 5, 2, 4]
    assert out[f"{name}.gate.weight"].shape == (6, 1)
    assert out[f"{name}.experts.down_proj"].flatten().tolist() == [0, 10, 30, 50, 20, 40]
    assert out["lm_head.weight"] is rows
    half = Symbiotic(understanding_share=0.5).partition(state, text, [torch.tensor([5, 2, 2, 9, 0, 7])])
    assert half[f"{name}.gate.weight"].squeeze(-1).tolist() == [[0, 3, 5], [1, 2, 4]]


def test_no_weight_is_new_and_none_is_lost(mixture: UniJanusForConditionalGeneration) -> None:
    parted = restructure(mixture, Symbiotic(), 0, USED)
    before, after = dict(mixture.named_parameters()), dict(parted.named_parameters())
    assert before.keys() == after.keys()
    assert sum(p.numel() for p in before.values()) == sum(p.numel() for p in after.values())
    moved = {name for name in before if not torch.equal(before[name].flatten(), after[name].flatten())}
    assert moved == {name for name in before if ".mlp.experts." in name or ".mlp.gate." in name}
    for number, order in enumerate([[1, 2, 3, 0], [0, 2, 3, 1]]):  # three most used in their order, then the least used
        back = torch.tensor(order).argsort()
        for part in ("experts.gate_up_proj", "experts.down_proj"):
            name = f"model.language_model.layers.{number}.mlp.{part}"
            assert torch.equal(after[name][back], before[name])
        name = f"model.language_model.layers.{number}.mlp.gate.weight"
        assert torch.equal(after[name][back], before[name][0])


def outputs(model: UniJanusForConditionalGeneration, x: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    """What layer 0's mixture makes of ``x``, and the experts chosen."""
    y, routing = model.decoder.layers[0].mlp(x, (kinds == Modality.IMAGE_OUT).long(), "learned")
    return y[0], routing.expert


@pytest.mark.parametrize("k", [1, 2])
@torch.no_grad()
def test_tokens_whose_experts_are_all_their_groups_come_out_as_before(make_model: MakeModel, k: int) -> None:
    """For k = 1 the weight is one either way; for k = 2 it is the ratio of the two, which leaving others out does not change."""
    model = make_model(ffn="moe", num_experts=8, num_experts_per_tok=k)
    x = torch.randn(1, 400, 32, generator=torch.Generator().manual_seed(0))
    kinds = torch.tensor([Modality.TEXT, Modality.IMAGE_IN, Modality.IMAGE_OUT, Modality.IMAGE_OUT]).repeat(100).unsqueeze(0)
    old, chosen = outputs(model, x, kinds)
    used = torch.bincount(chosen[(kinds != Modality.IMAGE_OUT).flatten()].flatten(), minlength=8)
    parted = restructure(model, Symbiotic(understanding_share=0.5), 0, [used, used])
    new, _ = outputs(parted, x, kinds)
    understanding = used.argsort(descending=True, stable=True)[:4]
    mine = torch.isin(chosen, understanding) == (kinds.flatten() != Modality.IMAGE_OUT).unsqueeze(-1)
    kept = mine.all(-1)
    assert 40 < int(kept.sum()) < 360
    torch.testing.assert_close(new[kept], old[kept], atol=1e-5, rtol=1e-5)
    assert ((new - old).abs().amax(-1)[~kept] > 1e-3).float().mean() > 0.95


@torch.no_grad()
def test_use_is_counted_over_real_tokens(make_model: MakeModel, joint_batch: Joint) -> None:
    model = make_model(ffn="moe", num_experts=6, num_experts_per_tok=2)
    counts = expert_usage(model, [joint_batch, joint_batch[:1]])
    expected = torch.zeros(2, 6, dtype=torch.long)
    for batch, times in zip(joint_batch, (2, 1), strict=True):
        for number, layer in enumerate(model.decode_batch(batch).routing):
            for place in batch.attention_mask.flatten().nonzero().flatten().tolist():
                for expert in layer.expert[place].tolist():
                    expected[number, expert] += times
    assert torch.equal(torch.stack(counts), expected)
    assert expert_usage(make_model(), [joint_batch]) == []


@pytest.mark.parametrize("start", ["dense", "ta_moe", "typed_moe"])
def test_only_a_plain_mixture_can_be_parted(make_model: MakeModel, start: str) -> None:
    text = {"group_by": "image_out"} if start == "typed_moe" else {}
    with pytest.raises(ValueError, match=f"ffn='{start}': symbiotic parts a plain mixture"):
        restructure(make_model(ffn=start, **text), Symbiotic(), 0, USED)
    for other in (MoE(), TaskAwareMoE()):
        with pytest.raises(ValueError, match="start from a dense checkpoint"):
            restructure(make_model(ffn="typed_moe", group_by="image_out"), other, 0)


@pytest.mark.parametrize(("share", "k"), [(1.0, 1), (0.1, 1), (0.75, 2)])
def test_groups_too_small_are_said(make_model: MakeModel, share: float, k: int) -> None:
    with pytest.raises(ValueError, match="gives one group fewer than the"):
        restructure(make_model(ffn="moe", num_experts_per_tok=k), Symbiotic(understanding_share=share), 0, USED)


def test_a_tasks_loss_reaches_its_groups_experts_alone(mixture: UniJanusForConditionalGeneration, joint_batch: Joint) -> None:
    """Understanding uses the first group only; generation both, since its prompts are text."""
    parted = restructure(mixture, Symbiotic(), 0, USED)
    for task in Task:
        parted.zero_grad()
        parted(batch=joint_batch).loss(task).backward()
        for layer in parted.decoder.layers:
            und, gen = (bool(layer.mlp.experts.down_proj.grad[rows].any()) for rows in (slice(0, 3), slice(3, 4)))
            assert und
            assert gen == (task is Task.T2I)
