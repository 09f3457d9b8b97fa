"""The decoder laid out: a step is a forward pass, weights are held once, and what does not fit is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from decoder_kinds import KINDS, refusal
from unidecouple.batch import Modality, Task
from unidecouple.generate.batch_slots import BatchSlots
from unidecouple.generate.fixed import BUCKET, FixedDecoder, KVCache
from unidecouple.generate.layout import join_shared, joined
from unidecouple.generate.one_task import one_task
from unidecouple.models.janus import UniJanusForConditionalGeneration

MakeModel = Callable[..., UniJanusForConditionalGeneration]
SERVED = [kind for kind in KINDS if refusal(kind) is None]
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.slow
@pytest.mark.parametrize("waits", [True, False], ids=["each expert its rows", "side by side"])
@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("kind", [*SERVED, GROUPED, {"ffn": "ta_moe", "moe_layers": [1], **GROUPED}], ids=str)
@torch.no_grad()
def test_steps_equal_one_forward_pass(make_model: MakeModel, kind: dict[str, Any], task: Task, waits: bool) -> None:
    """Three tokens after prompts of 2, 5 and 63: the last crosses a bucket's end."""
    slim = one_task(make_model(**kind), task)
    decoder = slim.decoder
    new = Modality.IMAGE_OUT if task is Task.T2I else Modality.TEXT
    lengths, tokens, width = (2, 5, BUCKET - 1), 3, decoder.config.hidden_size
    x = torch.randn(3, max(lengths) + tokens, width, generator=torch.Generator().manual_seed(0))
    states, cached = [], []
    for row, length in enumerate(lengths):
        modality = torch.full((1, length + tokens), int(Modality.TEXT))
        modality[:, length:] = int(new)
        labels = {"task_ids": torch.full((1, length + tokens), int(task)), "modality_ids": modality}
        states.append(decoder(inputs_embeds=x[row : row + 1, : length + tokens], **labels).last_hidden_state[0, length:])
        head = {name: ids[:, :length] for name, ids in labels.items()}
        cached.append(DynamicCache(config=decoder.config))
        decoder(inputs_embeds=x[row : row + 1, :length], cache=cached[-1], **head)
    fixed = FixedDecoder(decoder, task)
    assert fixed.waits
    fixed.waits = waits
    fed = torch.zeros(4, width)
    rows = BatchSlots(fixed, 4, BUCKET + 8, lambda count: fed[:count], lambda states: states, width)
    for length, cache in zip(lengths, cached, strict=True):
        rows.admit(cache, torch.ones(1, length, dtype=torch.long), torch.zeros(1, width))
    for step in range(tokens):
        fed[:3] = torch.stack([x[row, length + step] for row, length in enumerate(lengths)])
        rows.step()
        torch.testing.assert_close(rows.logits[:3], torch.stack([state[step] for state in states]), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("kind", [{}, {"ffn": "moe"}, {"ffn": "ta_moe"}], ids=str)
def test_weights_are_held_once(make_model: MakeModel, kind: dict[str, Any]) -> None:
    """Every parameter of the layers lies in the blocks' memory, unchanged; laying out again finds them so."""
    slim = one_task(make_model(**kind), Task.T2I)
    before = {name: p.detach().clone() for name, p in slim.decoder.layers.named_parameters()}
    join_shared(slim.decoder)
    fixed = FixedDecoder(slim.decoder, Task.T2I)
    laid = [t for block in fixed.blocks for t in (block.qkv, block.out, block.gate_up, block.down)]
    storages = {t.untyped_storage().data_ptr() for t in laid}
    for name, parameter in slim.decoder.layers.named_parameters():
        assert torch.equal(parameter, before[name]), name
        small = "norm" in name or ".gate." in name or "alpha" in name or "first_" in name
        assert small or parameter.untyped_storage().data_ptr() in storages, name
    assert sum(t.numel() for t in laid) == sum(p.numel() for n, p in before.items() if "proj" in n)
    if not kind:
        again = FixedDecoder(slim.decoder, Task.MMU)
        assert [b.gate_up.data_ptr() for b in again.blocks] == [b.gate_up.data_ptr() for b in fixed.blocks]


def test_only_neighbours_are_joined_without_a_copy() -> None:
    whole = torch.arange(24.0).view(4, 6)
    modules = [torch.nn.Linear(4, columns, bias=False) for columns in (2, 4)]
    modules[0].weight.data, modules[1].weight.data = whole[:, :2].T, whole[:, 2:].T
    assert joined(modules).data_ptr() == whole.data_ptr()
    assert torch.equal(joined(modules), whole)
    assert joined(modules[::-1]).data_ptr() != whole.data_ptr()  # another order, so copied, and views of that from now on
    assert [module.weight.tolist() for module in modules] == [whole[:, :2].T.tolist(), whole[:, 2:].T.tolist()]
    assert joined(modules[::-1]).data_ptr() == modules[1].weight.data_ptr()


class Counted(TorchDispatchMode):
    """Counts operators, and those that bring numbers to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.all.append(str(func))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_a_step_waits_for_nothing(make_model: MakeModel) -> None:
    """No operator that brings numbers to the host, or whose output's shape depends on numbers."""
    fixed = FixedDecoder(one_task(make_model(ffn="ta_moe"), Task.T2I).decoder, Task.T2I)
    fixed.waits = False  # as on a GPU
    places = KVCache(fixed.config, 3, 70, fixed.norm)
    position = torch.tensor([1, 5, 63])
    with Counted() as counted:
        fixed.step(torch.randn(3, len(fixed.norm)), places, position, 64)
    waits = ("_local_scalar_dense", "nonzero", "bincount", "unique", "masked_select", "_to_copy", "item")
    assert not [name for name in counted.all if any(wait in name for wait in waits)]
    assert len(counted.all) > 20


def test_what_is_refused(make_model: MakeModel) -> None:
    for kind, says in (
        ({"ffn": "ta_moe"}, "take one task's model first"),
        (KINDS[4], "lora_rank=4"),
        (KINDS[9], "per_group_attention='group'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
    ):
        with pytest.raises(ValueError, match=says):
            FixedDecoder(make_model(**kind).decoder, Task.T2I)
