"""Parameters, by part and by task, against real models, optimizers and the training code's own rules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from measured_step import Step, shapes_of
from unidecouple.batch import Task
from unidecouple.plan.weights import WeightCounts, count
from unidecouple.train.trainable import hold_absent_tasks

TakeStep = Callable[..., Step]
LAYERS = [f"model.language_model.layers.{index}" for index in range(2)] + ["model.vision_model.encoder.layers.0"]
LORA = {"lora_rank": 4, "lora_targets": ["attention", "experts", "shared_expert"], "lora_per_task": ["attention", "shared_expert"]}

PER_TASK = LORA | {"shared_expert_per_task": True}
UNTIED = [{"per_group_layers": [0, 1], "per_group_norm": True, "group_by": "task"}, {"per_group_layers": [1], "group_by": "task"}]
UNTIED += [
    {"per_group_layers": [0, 1], "per_group_parts": ["ffn"]},
    {"per_group_layers": [1], "per_group_parts": ["attention", "norms"]},
]
UNTIED += [{"per_group_layers": [0, 1], "group_by": group_by} for group_by in ("modality", "image_out")]


def counted(done: Step) -> WeightCounts:
    return count(done.model.config.text_config, shapes_of(done.model), done.moving, LAYERS)


def test_every_parameter_is_counted_once(step: TakeStep) -> None:
    done = step({"*": 1}, ffn="ta_moe", **LORA)
    weights, real = counted(done), {name: p.numel() for name, p in done.model.named_parameters()}
    assert weights.total == sum(real.values())
    assert weights.trainable == sum(real[name] for name in done.moving)
    assert weights.parts["experts"] == (2 * 4 * 3 * 64 * 32,) * 2  # layers, experts, matrices, widths
    assert weights.tokenizer == sum(size for name, size in real.items() if "vqmodel" in name)
    for layer in LAYERS:
        assert weights.layers[layer].total == sum(size for name, size in real.items() if name.startswith(f"{layer}."))
    inside = sum(unit.total for unit in weights.layers.values())
    assert weights.root.total == weights.total - weights.tokenizer - inside
    assert weights.root.trainable + sum(unit.trainable for unit in weights.layers.values()) == weights.trainable


def test_a_token_meets_one_expert_of_four(step: TakeStep) -> None:
    weights = counted(step({"experts": 1}, ffn="ta_moe"))
    assert weights.total - weights.tokenizer - weights.active == 3 * weights.parts["experts"][0] // 4
    dense = counted(step({"ffn": 1}))
    assert dense.active == dense.total - dense.tokenizer


def test_a_token_meets_its_task_s_updates_alone(step: TakeStep) -> None:
    """By hand: two layers, in which a rank of 4 gives each projection 4 x (in + out) numbers a task."""
    lora = {"lora_rank": 4, "lora_targets": ["attention", "mlp"]}
    shared, parted = (counted(step({"*": 1}, **lora, lora_per_task=per_task)) for per_task in (list[str](), ["attention", "mlp"]))
    text = step({"*": 1}).model.config.text_config
    assert (text.hidden_size, text.num_attention_heads, text.num_key_value_heads, text.intermediate_size) == (32, 4, 4, 64)
    attention, ffn = 4 * (32 + 32), 3 * (32 + 64)
    assert parted.total - shared.total == 2 * 4 * (attention + ffn)
    assert parted.active == shared.active == counted(step({"*": 1})).active + 2 * 4 * (attention + ffn)


@pytest.mark.slow
@pytest.mark.parametrize("text", UNTIED, ids=str)
def test_a_token_meets_one_set_of_two(step: TakeStep, text: dict[str, object]) -> None:
    assert counted(step({"*": 1}, **text)).active == counted(step({"*": 1})).active


@pytest.mark.parametrize("train", [{"*": 1}, {"lora": 1, "generation": 1}])
def test_optimizer_states_to_the_byte(step: TakeStep, train: dict[str, float]) -> None:
    """Of a real AdamW after a step; a weight without a gradient (updates by task in the first layer) has no state."""
    done = step(train, ffn="ta_moe", **LORA)
    chosen = [p for p in done.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(chosen, fused=True)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    assert counted(done).optimizer_bytes == sum(value.numel() * value.element_size() for value in states)
    assert len(optimizer.state) < len(chosen)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", [{}, {"ffn": "moe"}, {"ffn": "ta_moe"}, {"ffn": "ta_moe", **LORA}, {"ffn": "ta_moe", **PER_TASK}, *UNTIED], ids=str
)
def test_private_weights_are_those_that_training_holds(step: TakeStep, text: dict[str, object]) -> None:
    """``hold_absent_tasks`` zeroes the gradients of one task's own weights: half of what is private."""
    done = step({"*": 1}, **text)
    moving = [p for name, p in done.model.named_parameters() if name in done.moving]
    for parameter in moving:
        parameter.grad = torch.ones_like(parameter)
    hold_absent_tasks(done.model, [Task.MMU])
    held = sum(int((parameter.grad == 0).sum()) for parameter in moving if parameter.grad is not None)
    assert counted(done).private == 2 * held
