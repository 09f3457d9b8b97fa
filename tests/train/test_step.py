"""What a training step costs that a CPU can count: waits for the device, and dispatched operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import TINY, MakeModel
from step_settings import step_settings
from unidecouple.batch import IGNORE, Batch
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.methods.objective import LoadBalance, Objective
from unidecouple.methods.objective.group_router import group_router_loss
from unidecouple.models.processing import UniJanusProcessor
from unidecouple.models.tiny import tiny_config, tiny_model
from unidecouple.train.step import train_step

LAYERS = 12
"""Enough to see what grows with them: in two micro-batches, a wait per layer is above the bound of 20."""
WAITS = ("_local_scalar_dense", "nonzero", "bincount", "unique", "_unique2", "masked_select", "is_nonzero", "equal")
"""Operators that bring numbers to the host, or whose output's shape depends on them."""


class Count(TorchDispatchMode):
    """Counts dispatched operators, and those among them that wait for a GPU; selections by boolean masks do."""

    def __init__(self) -> None:
        super().__init__()
        self.operators, self.waits = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name.startswith(("index", "_unsafe_index")) and len(args) > 1 and isinstance(args[1], list | tuple)
        masks = [part for part in args[1] if isinstance(part, Tensor) and part.dtype == torch.bool] if by_mask else []
        self.operators += 1
        self.waits += name in WAITS or bool(masks)
        return func(*args, **(kwargs or {}))


class CountLists(TorchFunctionMode):
    """Counts ``tolist``, which reads a tensor without an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        self.waits += getattr(func, "__name__", "") == "tolist"
        return func(*args, **(kwargs or {}))


def counted(
    processor: UniJanusProcessor, joint: tuple[Batch, Batch], objective: Objective, layers: int = LAYERS, **text: Any
) -> tuple[int, int]:
    """Operators and waits of one step, the places of its tokens found before, as they are before a batch is moved."""
    size = replace(TINY, num_hidden_layers=layers)
    model = tiny_model(tiny_config(processor.tokenizer, size, **text), seed=0).train()
    trained = [weight for name, weight in model.named_parameters() if "vqmodel" not in name and "vision" not in name]
    optimizer = torch.optim.AdamW(trained, fused=True)
    assert all(batch.places for batch in joint)
    with CountLists() as lists, Count() as count:
        train_step(model, optimizer, [joint], step_settings(objective))
    return count.operators, count.waits + lists.waits


@pytest.fixture(scope="module")
def dense(processor: UniJanusProcessor, joint_batch: tuple[Batch, Batch]) -> tuple[int, int]:
    return counted(processor, joint_batch, Objective(), 24)


LORA = {"lora_rank": 8, "lora_targets": ["attention", "experts", "shared_expert"]}


@pytest.mark.parametrize(
    ("text", "objective"),
    [
        ({"ffn": "ta_moe"}, Objective()),
        ({"ffn": "ta_moe", "context_router": True, **LORA, "lora_per_task": ["attention"]}, Objective()),
        ({"ffn": "moe", "num_experts_per_tok": 2}, Objective(auxiliary=(LoadBalance(),))),
        ({"ffn": "typed_moe", "group_by": "image_out", "group_sizes": [3, 1]}, Objective(auxiliary=(LoadBalance(),))),
        ({"per_group_layers": list(range(LAYERS)), "per_group_norm": True, "group_by": "modality"}, Objective()),
    ],
)
def test_waits_do_not_grow_with_layers(
    processor: UniJanusProcessor, joint_batch: tuple[Batch, Batch], text: dict[str, Any], objective: Objective
) -> None:
    """On a GPU each wait drains the queue of kernels. The goal is below 20 per step of 24 layers."""
    assert counted(processor, joint_batch, objective, experts_backend="grouped_mm", **text)[1] < 20


def test_the_mixture_dispatches_few_operators(
    processor: UniJanusProcessor, joint_batch: tuple[Batch, Batch], dense: tuple[int, int]
) -> None:
    ours = counted(processor, joint_batch, Objective(), 24, ffn="ta_moe")
    assert ours[1] < 20
    assert dense[1] < 20
    assert ours[0] <= 1.6 * dense[0]


def test_a_loop_over_experts_waits_once_per_layer(processor: UniJanusProcessor, joint_batch: tuple[Batch, Batch]) -> None:
    """What a GPU runs outside of bfloat16, low-rank updates included: six products, one wait, in each of two micro-batches."""
    waits = counted(processor, joint_batch, Objective(), ffn="ta_moe", experts_backend="loop", **LORA)[1]
    assert waits < 2 * LAYERS + 20


def test_a_builder_s_batch_knows_its_places(builder: SequenceBuilder, joint_batch: tuple[Batch, Batch]) -> None:
    understanding, generation = joint_batch
    for batch, places in ((understanding, understanding.places), (generation, generation.places)):
        ids = batch.labels if batch is understanding else batch.image_tokens
        before, targets = (places.before_text, places.text) if batch is understanding else (places.before_image, places.image)
        rows, columns = before // ids.shape[1], before % ids.shape[1]
        assert torch.equal(ids[rows, columns + 1], targets)
        assert places.real.tolist() == [place for place, real in enumerate(batch.attention_mask.flatten().tolist()) if real]
        assert sum(places.num_tokens) == len(places.real)
    moved = understanding.to("cpu")
    assert moved.places.real.equal(understanding.places.real)
    assert "_places" not in vars(moved)


@pytest.mark.parametrize("routing", ["label", "learned"])
@pytest.mark.parametrize("moe_layers", [None, [0]])
def test_router_samples_cost_what_routers_need(
    make_model: MakeModel, joint_batch: tuple[Batch, Batch], routing: str, moe_layers: list[int] | None
) -> None:
    """The same losses and gradients, bit for bit, with fewer operators and no gradients beside the routers'."""
    samples = replace(joint_batch[0], labels=torch.full_like(joint_batch[0].labels, IGNORE))
    joint = (*joint_batch, samples)
    text: dict[str, Any] = {"ffn": "ta_moe", "context_router": True, "moe_layers": moe_layers, **LORA}
    found, operators = [], []
    for balanced in (True, False):
        model = make_model(**text).train()
        with Count() as count:
            output = model(batch=joint, routing=routing, balanced=balanced)
            loss = output.mmu.mean + output.t2i.mean + group_router_loss(joint, output.routing)
            loss.backward()
        operators.append(count.operators)
        found.append((loss, {name: weight.grad for name, weight in model.named_parameters()}))
    (wanted, gradients), (ours, others) = found
    assert torch.equal(ours, wanted)
    for name, gradient in gradients.items():
        assert (others[name] is None) == (gradient is None), name
        assert gradient is None or torch.equal(others[name], gradient), name
    assert operators[1] < operators[0]


@pytest.mark.parametrize("backend", ["grouped_mm", "loop"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_step_on_the_device_is_the_step_on_a_cpu(
    make_model: MakeModel, joint_batch: tuple[Batch, Batch], device: torch.device, backend: str, packed: bool
) -> None:
    """Losses and gradients of a mixture with low-rank updates, every label in place after the move."""
    joint = joint_batch
    if packed:  # each row begins where the one before ends
        parts = [{name: part for name, part in vars(batch).items() if part is not None} for batch in joint_batch]
        flat = [{n: p if n == "pixel_values" else p.reshape(1, -1) for n, p in part.items()} for part in parts]
        places = [torch.arange(batch.input_ids.shape[1]).repeat(2)[None] for batch in joint_batch]
        joint = tuple(Batch(**part, position_ids=place) for part, place in zip(flat, places, strict=True))
    found = []
    for place, batches in ((torch.device("cpu"), joint_batch), (device, joint)):
        model = make_model(ffn="ta_moe", experts_backend=backend, **LORA).to(place)
        output = model(batch=tuple(batch.to(place) for batch in batches))
        (output.mmu.mean + output.t2i.mean).backward()
        gradients = {name: weight.grad.cpu() for name, weight in model.named_parameters() if weight.grad is not None}
        found.append((output.mmu.total.cpu(), output.t2i.total.cpu(), gradients))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
