"""Prompts of a forward pass move to rows of the cache in one copy per layer and tensor, however many they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from unidecouple.batch import Task
from unidecouple.generate.batch_slots import BatchSlots
from unidecouple.generate.fixed import FixedDecoder
from unidecouple.models.janus import UniJanusForConditionalGeneration

MakeModel = Callable[..., UniJanusForConditionalGeneration]


class Operators(TorchDispatchMode):
    """Counts dispatched operators."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def prompts(slots: BatchSlots, lengths: list[int]) -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
    """A cache whose keys and values have the number of their token from 1 on in every entry, and 0 on the left padding."""
    config, longest = slots.fixed.config, max(lengths)
    mask = torch.tensor([[0] * (longest - n) + [1] * n for n in lengths])
    tokens = (mask.cumsum(1) * mask).float()[:, None, :, None]
    states = tokens.expand(-1, config.num_key_value_heads, -1, config.head_dim)
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        cache.update(states, -states, layer)
    return cache, mask, torch.tensor(lengths).float()[:, None].expand(-1, slots.logits.shape[1])


@pytest.fixture
def slots(make_model: MakeModel) -> BatchSlots:
    fixed = FixedDecoder(make_model().decoder, Task.T2I)
    return BatchSlots(fixed, 12, 64, lambda rows: torch.empty(0), lambda hidden: hidden, 3)


def test_prompts_begin_at_column_0(slots: BatchSlots) -> None:
    assert slots.admit(*prompts(slots, [4, 4])) == [0, 1]
    assert slots.admit(*prompts(slots, [2, 5, 1])) == [2, 3, 4]
    assert slots.lengths == [4, 4, 2, 5, 1]
    assert slots.logits[:5, 0].tolist() == [4, 4, 2, 5, 1]
    for keys, values in zip(slots.cache.keys, slots.cache.values, strict=True):
        for row, length in enumerate(slots.lengths):
            expected = torch.arange(1.0, length + 1)[None, :, None].expand_as(keys[row, :, :length])
            assert torch.equal(keys[row, :, :length], expected)
            assert torch.equal(values[row, :, :length], -expected)


def test_operators_do_not_grow_with_the_batch(slots: BatchSlots) -> None:
    counts = []
    for lengths in ([3, 2], [3, 2, 1, 1, 2, 3, 1, 2]):
        given = prompts(slots, lengths)
        with Operators() as operators:
            slots.admit(*given)
        counts.append(operators.count)
    assert counts[0] == counts[1]


def test_rows_from_the_end_fill_the_gaps(slots: BatchSlots) -> None:
    slots.admit(*prompts(slots, [1, 2, 3, 4, 5]))
    assert slots.leave({1, 3}) == {4: 1}
    assert slots.lengths == [1, 5, 3]
    assert slots.logits[:3, 0].tolist() == [1, 5, 3]
    assert slots.cache.keys[-1][1, 0, :5, 0].tolist() == [1, 2, 3, 4, 5]
    assert slots.leave({0, 1, 2}) == {}
    assert slots.count == 0
