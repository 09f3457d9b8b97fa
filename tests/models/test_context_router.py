"""The first layer's router that looks at what stands before a token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unidecouple.batch import Batch, Task
from unidecouple.methods.objective.group_router import group_router_loss
from unidecouple.methods.structure.ta_moe import TaskAwareMoE
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.train.build import restructure

MakeModel = Callable[..., UniJanusForConditionalGeneration]
Joint = tuple[Batch, Batch]
KIND: dict[str, Any] = {"ffn": "ta_moe", "context_router": True}


def first_layer(model: UniJanusForConditionalGeneration, ids: Tensor) -> Tensor:
    """Task logits (B, T, groups) of the first layer."""
    return model.decoder(input_ids=ids).routing[0].task_logits.view(*ids.shape, -1)


@torch.no_grad()
def test_what_stands_before_a_token_matters_and_what_comes_after_does_not(make_model: MakeModel) -> None:
    model = make_model(**KIND)
    ids = torch.tensor([[1, 12, 13, 14, 15, 16], [1, 20, 13, 14, 15, 16], [1, 12, 13, 14, 15, 30]])
    logits = first_layer(model, ids)
    assert float((logits[0, 2:] - logits[1, 2:]).abs().amax(-1).min()) > 1e-3
    assert torch.equal(logits[0, :5], logits[2, :5])


@pytest.mark.parametrize("asked", ["sdpa", {"text_config": "sdpa"}], ids=str)
def test_attention_is_chosen_for_it_too(make_model: MakeModel, asked: str | dict[str, str]) -> None:
    model = make_model(**KIND)
    model.set_attn_implementation("eager")
    assert model.decoder.context_router.attention.config._attn_implementation == "eager"
    ids = torch.tensor([[1, 12, 13, 14, 15, 16]])
    eager = first_layer(model, ids)
    model.set_attn_implementation(asked)
    assert model.decoder.context_router.attention.config._attn_implementation == "sdpa"
    torch.testing.assert_close(first_layer(model, ids), eager)


@torch.no_grad()
def test_a_fresh_one_sends_all_to_understanding(make_model: MakeModel, joint_batch: Joint) -> None:
    dense = make_model()
    model = restructure(dense, TaskAwareMoE(context_router=True), seed=3)
    assert model.decoder.layers[0].mlp.router is None
    for batch in joint_batch:
        decoded = model.decode_batch(batch)
        assert not torch.cat([layer.group for layer in decoded.routing]).any()
        expected = dense.decode_batch(batch).last_hidden_state
        assert float((decoded.last_hidden_state - expected).abs().max()) <= 1e-5


@torch.no_grad()
def test_later_layers_start_from_what_it_knows(make_model: MakeModel, joint_batch: Joint) -> None:
    """Fresh routers add nothing to its logits; taught ones can overrule it."""
    model = restructure(make_model(), TaskAwareMoE(context_router=True), seed=3)
    nn.init.normal_(model.decoder.context_router.weight)
    first, second = model.decode_batch(joint_batch[0]).routing
    assert torch.equal(first.group, second.group)
    assert set(first.group.tolist()) == {0, 1}
    nn.init.normal_(model.decoder.layers[1].mlp.router.weight, std=10)
    first, second = model.decode_batch(joint_batch[0]).routing
    assert not torch.equal(first.group, second.group)


def test_the_group_loss_teaches_it_what_words_alone_cannot(make_model: MakeModel, joint_batch: Joint) -> None:
    """The same words as a prompt and in a conversation, distinguished by the token before them; nothing else moves."""
    model = restructure(make_model(), TaskAwareMoE(context_router=True), seed=3)
    ids = torch.cat([torch.tensor([[10], [11]]), torch.randint(20, 30, (1, 8)).expand(2, -1)], 1)
    tasks = torch.tensor([[Task.MMU], [Task.T2I]]).expand(2, 9)
    batch = replace(
        joint_batch[1],
        input_ids=ids,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        task_ids=tasks,
        labels=torch.full_like(ids, -100),
        image_tokens=torch.full_like(ids, -1),
        prompt_dropped=None,
    )
    optimizer = torch.optim.Adam(model.decoder.context_router.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        group_router_loss((batch,), model(batch=(batch,)).routing).backward()
        optimizer.step()
    reached = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    prefix = "model.language_model.context_router"
    attention = {f"{prefix}.attention.{part}_proj.weight" for part in "qkvo"}
    assert reached == {f"{prefix}.weight", "model.language_model.layers.1.mlp.router.weight"} | attention
    assert torch.equal(first_layer(model, ids).argmax(-1), tasks)


@torch.no_grad()
def test_the_first_layers_attention_follows_it(make_model: MakeModel, joint_batch: Joint) -> None:
    lora = {"lora_rank": 4, "lora_targets": ["attention"], "lora_per_task": ["attention"]}
    model = make_model(**KIND, **lora)
    router = model.decoder.context_router
    nn.init.zeros_(router.weight)  # all to understanding
    before = model.decode_batch(joint_batch[1]).last_hidden_state
    model.decoder.layers[0].self_attn.v_proj.lora_B[Task.T2I] *= 2
    assert torch.equal(before, model.decode_batch(joint_batch[1]).last_hidden_state)
    model.decoder.layers[0].self_attn.v_proj.lora_B[Task.MMU] *= 2
    assert not torch.allclose(before, model.decode_batch(joint_batch[1]).last_hidden_state, atol=1e-2)


def test_it_needs_tasks_to_route_to() -> None:
    with pytest.raises(ValueError, match="use ffn='ta_moe'"):
        UniLlamaConfig(ffn="moe", context_router=True)
