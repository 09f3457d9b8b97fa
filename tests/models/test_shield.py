"""Shielded tokens pass through a shared expert as ever, and teach its weights a scaled part of what they would."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from conftest import MakeModel
from unidecouple.batch import NO_IMAGE_TOKEN, Batch, Task
from unidecouple.methods.stage import GradientShielding
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.moe import FeedForward
from unidecouple.models.shield import SharedExpertGradScale, shielded

TA_MOE = {"ffn": "ta_moe", "shared_expert": True, "task_routing": "label"}
LORA = {"lora_rank": 4, "lora_alpha": 8.0, "lora_targets": ["attention", "shared_expert"]}
KINDS = {
    "plain": {},
    "lora": LORA,
    "lora by task": {**LORA, "lora_per_task": ["shared_expert"]},
}
Joint = tuple[Batch, Batch]


def expert_of(make_model: MakeModel, kind: str) -> FeedForward:
    return make_model(**TA_MOE, **KINDS[kind]).decoder.layers[0].mlp.shared_expert


def learned(expert: FeedForward, y: Tensor, seen: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients of a random function of ``y``, by weight and of the input."""
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    named = dict(expert.named_parameters())
    wanted = [*named.values(), seen]
    found = torch.autograd.grad((y * direction).sum(), wanted, retain_graph=True, allow_unused=True, materialize_grads=True)
    return dict(zip(named, found, strict=False)), found[-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("drawn", ["some", "all", "none"])
def test_weights_learn_a_part_and_inputs_all(kind: str, factor: float, drawn: str, make_model: MakeModel) -> None:
    """By hand: two forwards of the free and of the shielded tokens alone; ``g_free + factor g_shielded``."""
    expert = expert_of(make_model, kind)
    x = torch.randn(9, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = {"some": torch.arange(9) % 3 == 1, "all": torch.ones(9), "none": torch.zeros(9)}[drawn].bool()
    group = mask.long()
    y = shielded(expert, x, group, SharedExpertGradScale(mask.view(3, 3), factor))
    plain = expert(x, group)
    torch.testing.assert_close(y, plain)
    found, into = learned(expert, y, x)
    torch.testing.assert_close(into, learned(expert, plain, x)[1])
    free, _ = learned(expert, torch.where(mask[:, None], plain.detach(), plain), x)
    held, _ = learned(expert, torch.where(mask[:, None], expert(x, group), plain.detach()), x)
    for name, gradient in found.items():
        own = kind == "lora by task" and "lora" in name
        torch.testing.assert_close(
            gradient, free[name] + (1 if own else factor) * held[name], rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def gradients(
    model: UniJanusForConditionalGeneration, joint: Joint, shield: GradientShielding | None, step: int = 0, bf16: bool = False
) -> dict[str, Tensor]:
    model.zero_grad()
    scales = None if shield is None else [shield.on(batch, step) for batch in joint]
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = model(batch=joint, shield=scales)
    (output.loss(Task.MMU) + output.loss(Task.T2I)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tokens", ["image_out", "task"])
def test_a_whole_model_by_its_schedule(tokens: str, make_model: MakeModel, joint_batch: Joint) -> None:
    """At first the shared experts learn what the free tokens teach, then a tenth of the rest; no other weight sees a change."""
    shield = GradientShielding(2, 0.1, tokens)
    off, early, late = (
        gradients(make_model(**TA_MOE), joint_batch, shield, step) for shield, step in ((None, 0), (shield, 1), (shield, 2))
    )
    for name, plain in off.items():
        if ".shared_expert." in name:
            torch.testing.assert_close(late[name], early[name] + 0.1 * (plain - early[name]), rtol=1e-3, atol=1e-6)
            assert not torch.allclose(plain, early[name], rtol=1e-2)
        else:
            torch.testing.assert_close(early[name], plain, rtol=1e-4, atol=1e-6)


def test_task_shields_the_whole_generation_sample(make_model: MakeModel, joint_batch: Joint) -> None:
    """What is left is understanding's gradient: one micro-batch holds one task. (BOS counts as understanding's, else.)"""
    mmu, t2i = joint_batch
    kept = gradients(
        make_model(**TA_MOE), (mmu, replace(t2i, task_ids=torch.ones_like(t2i.task_ids))), GradientShielding(9, tokens="task")
    )
    alone = gradients(make_model(**TA_MOE), (mmu,), None)
    for name in (name for name in kept if ".shared_expert." in name):
        torch.testing.assert_close(kept[name], alone[name], rtol=1e-4, atol=1e-6)


def test_which_tokens(joint_batch: Joint) -> None:
    mmu, t2i = joint_batch
    drawn, task = (GradientShielding(0, 0.5, tokens).on(t2i, 0) for tokens in ("image_out", "task"))
    assert torch.equal(drawn.tokens, t2i.image_tokens != NO_IMAGE_TOKEN)
    assert (task.tokens.sum() > drawn.tokens.sum()) & (task.factor == drawn.factor == 0.5)
    assert not GradientShielding().on(mmu, 0).tokens.any()


def test_recomputed_layers_change_nothing(make_model: MakeModel, joint_batch: Joint) -> None:
    model = make_model(**TA_MOE, **LORA)
    expected = gradients(copy.deepcopy(model), joint_batch, GradientShielding(0, 0.1))
    model.train()
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # its new name is not in transformers 5.22
        model.gradient_checkpointing_enable({"use_reentrant": False})
    found = gradients(model, joint_batch, GradientShielding(0, 0.1))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_bf16_rounds_no_worse_than_without(make_model: MakeModel, joint_batch: Joint) -> None:
    model = make_model(**TA_MOE, **LORA)

    def likeness(shield: GradientShielding | None) -> dict[str, float]:
        exact, rounded = (gradients(model, joint_batch, shield, bf16=bf16) for bf16 in (False, True))
        both = {name: (exact[name].flatten(), rounded[name].flatten()) for name in exact if "shared_expert" in name}
        return {name: torch.cosine_similarity(*pair, dim=0).item() for name, pair in both.items()}

    plain, kept = likeness(None), likeness(GradientShielding(0, 0.1))
    assert min(kept[name] - plain[name] for name in plain) > -0.03


def test_shield_counts_from_the_start_of_its_stage(joint_batch: Joint) -> None:
    shield = replace(GradientShielding(), steps=3)
    assert [shield.on(joint_batch[1], step).factor for step in range(5)] == [0, 0, 0, 0.1, 0.1]
