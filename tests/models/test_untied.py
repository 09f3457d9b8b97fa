"""Layers with one set of weights a group: against a loop over tokens, and what can reach what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unidecouple.batch import NO_IMAGE_TOKEN, Batch, Task
from unidecouple.methods.selection import select
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.untied import SortedTokens, UniRMSNorm, UntiedFeedForward, UntiedLinear, project

MakeModel = Callable[..., UniJanusForConditionalGeneration]
Joint = tuple[Batch, Batch]

GROUPS = [torch.tensor([[0, 1, 1], [1, 0, 1]]), torch.zeros(2, 3, dtype=torch.long), torch.ones(1, 1, dtype=torch.long)]
every_group = pytest.mark.parametrize("group", GROUPS, ids=lambda group: str(group.tolist()))
every_backend = pytest.mark.parametrize("backend", ["loop", "grouped_mm"])


def config(backend: str = "loop", **fields: Any) -> UniLlamaConfig:
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 16}
    return UniLlamaConfig(**sizes, per_group_layers=[0, 1], experts_backend=backend, mlp_bias=True, **fields)


def enliven(module: torch.nn.Module) -> None:
    torch.manual_seed(0)
    for weight in module.parameters():
        torch.nn.init.normal_(weight, mean=float(weight.ndim == 2), std=0.5)


def tokens_of(group: Tensor) -> Tensor:
    return torch.randn(*group.shape, 8, generator=torch.Generator().manual_seed(1))


def by_token(x: Tensor, group: Tensor, of: Callable[[Tensor, int], Tensor]) -> Tensor:
    """``of(token, group)`` of each."""
    return torch.stack(
        [torch.stack([of(token, int(g)) for token, g in zip(*row, strict=True)]) for row in zip(x, group, strict=True)]
    )


@every_group
def test_sorting_and_back(group: Tensor) -> None:
    x, tokens = tokens_of(group), SortedTokens.of(group, 2)
    assert tokens.group.tolist() == sorted(group.flatten().tolist())
    assert tokens.counts.sizes == [int((group == g).sum()) for g in (0, 1)]
    assert torch.equal(tokens.back(tokens.rows(x)), x)
    assert torch.equal(tokens.rows(group.unsqueeze(-1)).flatten(), tokens.group)


@every_group
@every_backend
def test_projections_token_by_token(group: Tensor, backend: str) -> None:
    layers = [UntiedLinear(2, 8, 4, bias, backend) for bias in (True, False)]
    for layer in layers:
        enliven(layer)
    x = tokens_of(group)
    for layer, found in zip(layers, project(layers, x, group, SortedTokens.of(group, 2)), strict=True):
        bias = layer.bias
        expected = by_token(x, group, lambda t, g, w=layer.weight, b=bias: F.linear(t, w[g], None if b is None else b[g]))
        torch.testing.assert_close(found, expected)


@every_group
@every_backend
def test_ffn_token_by_token(group: Tensor, backend: str) -> None:
    ffn = UntiedFeedForward(config(backend))
    enliven(ffn)

    def one(token: Tensor, g: int) -> Tensor:
        gate, up = (F.linear(token, p.weight[g], p.bias[g]) for p in (ffn.gate_proj, ffn.up_proj))
        return F.linear(F.silu(gate) * up, ffn.down_proj.weight[g], ffn.down_proj.bias[g])

    x = tokens_of(group)
    torch.testing.assert_close(ffn(x, SortedTokens.of(group, 2)), by_token(x, group, one))


@every_group
def test_norm_token_by_token(group: Tensor) -> None:
    norm, x = UniRMSNorm(8, 1e-6, 2), tokens_of(group)
    assert torch.equal(norm.weight, torch.ones(2, 8))
    enliven(norm)
    torch.testing.assert_close(norm(x, group), by_token(x, group, lambda t, g: norm.weight[g] * t * t.square().mean() ** -0.5))


@pytest.mark.parametrize("backend", ["loop", "grouped_mm"])
def test_sets_without_tokens_have_zero_gradients(backend: str) -> None:
    """Zero, not None: else processes whose batches hold other groups would wait for, or mix up, each other's gradients."""
    group = torch.ones(2, 3, dtype=torch.long)
    ffn, norm = UntiedFeedForward(config(backend)), UniRMSNorm(8, 1e-6, 2)
    enliven(ffn)
    (ffn(norm(tokens_of(group), group), SortedTokens.of(group, 2)) ** 2).sum().backward()
    for weight in (*ffn.parameters(), *norm.parameters()):
        assert weight.grad is not None
        assert not weight.grad[0].any()
        assert weight.grad[1].any()


@torch.no_grad()
def states(model: UniJanusForConditionalGeneration, batch: Batch) -> Tensor:
    return model.decode_batch(batch).last_hidden_state[batch.attention_mask]


@pytest.mark.parametrize(
    ("group_by", "meets"),  # whether the rows of (understanding, generation) meet set 0, and set 1
    [
        ("task", ((True, True), (False, True))),
        ("modality", ((True, True), (True, True))),
        ("image_out", ((True, True), (False, True))),
    ],
)
def test_which_rows_meet_which_set(make_model: MakeModel, joint_batch: Joint, group_by: str, meets: Any) -> None:
    """Generation's rows meet set 0 by task, too: their first token counts as understanding."""
    for number in (0, 1):
        model = make_model(per_group_layers=[0, 1], per_group_norm=True, group_by=group_by)
        before = [states(model, batch) for batch in joint_batch]
        for name, weight in model.decoder.named_parameters():
            if "layers." in name or name == "norm.weight":
                weight.data[number] *= 1.5
        changed = [not torch.equal(old, states(model, batch)) for old, batch in zip(before, joint_batch, strict=True)]
        assert tuple(changed) == meets[number]


@pytest.mark.parametrize(("layers", "attention", "seen"), [([0, 1], "all", True), ([0, 1], "group", False), ([0], "group", True)])
def test_what_a_picture_sees_of_its_prompt(
    make_model: MakeModel, joint_batch: Joint, layers: list[int], attention: str, seen: bool
) -> None:
    """Attention within the group keeps prompts from images, but for layers that are shared."""
    model, batch = make_model(per_group_layers=layers, group_by="modality", per_group_attention=attention), joint_batch[Task.T2I]
    drawn = batch.image_tokens != NO_IMAGE_TOKEN
    other = replace(batch, input_ids=torch.where(drawn, batch.input_ids, batch.input_ids.flip(0)))
    with torch.no_grad():
        one, two = (model.decode_batch(b).last_hidden_state[drawn] for b in (batch, other))
    assert torch.equal(one, two) != seen


def test_parts_of_recipes_match_every_set(make_model: MakeModel) -> None:
    names = [name for name, _ in make_model(per_group_layers=[0, 1], per_group_norm=True, attention_bias=True).named_parameters()]
    parts = select(names, {"norms": 1, "attention": 1, "ffn": 1})
    assert set(parts) == {name for name in names if "language_model.layers." in name or name.endswith("language_model.norm.weight")}


@pytest.mark.parametrize(
    ("group_by", "needed"), [("task", "task_ids"), ("modality", "modality_ids"), ("image_out", "modality_ids")]
)
def test_what_unties_must_be_told(make_model: MakeModel, group_by: str, needed: str) -> None:
    model, ids = make_model(per_group_layers=[1], group_by=group_by), torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=f"weights per '{group_by}' need {needed}"):
        model.decoder(input_ids=ids)
    if group_by != "task":
        model(input_ids=ids)  # from text alone Janus knows what is an image, but not the task


def test_flash_attention_cannot_part_modalities(make_model: MakeModel, joint_batch: Joint) -> None:
    model = make_model(per_group_layers=[0], per_group_attention="group")
    model.config.text_config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match=r"per_group_attention='group'.*use attn_implementation='sdpa'"):
        model.decoder(input_ids=torch.ones(1, 3, dtype=torch.long), task_ids=torch.zeros(1, 1, dtype=torch.long))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"per_group_layers": [2]}, r"per_group_layers=\[2\].*layers 0 to 1"),
        ({"per_group_layers": []}, "name some"),
        ({"per_group_layers": [0, 0]}, "each once"),
        ({"per_group_layers": [0], "ffn": "moe"}, "with ffn='moe'"),
        ({"per_group_layers": [0], "lora_rank": 4, "lora_targets": ["attention"]}, "lora_rank=4.*take no low-rank updates"),
        ({"per_group_layers": [0], "num_tasks": 1}, "num_tasks=1"),
        ({"per_group_norm": True}, "without per_group_layers"),
        ({"per_group_attention": "group"}, "without per_group_layers"),
        ({"per_group_layers": [0], "per_group_attention": "none"}, "per_group_attention='none' is not one of all, group"),
        ({"group_by": "none"}, "group_by='none' is not one of task, modality, image_out"),
    ],
)
def test_configurations_that_cannot_be(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        UniLlamaConfig(num_hidden_layers=2, **fields)
