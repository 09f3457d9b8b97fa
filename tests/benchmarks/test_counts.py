"""C7, C8 and C9: counts against cases done by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks import allreduce, cache, hooked_step, packing
from benchmarks.hooked_step import SIZE, Sent
from benchmarks.timing import SidesDifferError
from benchmarks.tiny import samples
from unidecouple.batch import Batch, Task
from unidecouple.data.packing import pack
from unidecouple.data.sequences import Sample, SequenceBuilder, collate
from unidecouple.models.janus import UniJanusForConditionalGeneration

PRIVATE = 4 * 2 * (4 * (2 * 64 * 32 + 32 * 64) + 4 * 32)
"""Bytes, float32: two layers of four experts (gate and up, down) and their router's four rows."""


@pytest.fixture
def four_processes() -> Iterator[None]:
    """This process and three pretended: calls are made, nothing is sent."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("four_processes")
def test_half_of_the_experts_gradients_by_hand() -> None:
    model = hooked_step.make_model()
    both, alone, task = hooked_step.shares(0, 4)
    plain, _ = hooked_step.step(model, both, None, None)
    apart, _ = hooked_step.step(model, alone, task, dist.new_group([0, 1]))
    trained = 4 * sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert plain == Sent(PRIVATE, trained - PRIVATE)
    assert apart == Sent(PRIVATE // 2, trained - PRIVATE)
    result = allreduce.result(plain, apart, 4)
    assert [row.value for row in result.rows] == [PRIVATE, PRIVATE / 2, 0.5, 1.0, 1.0, 1.0]
    assert result.details["counted"]["tasks: all-reduce inside the task"] == PRIVATE / 2  # 2 (2 - 1) / 2 of a half
    assert result.details["planned"]["ddp: all-reduce"] == 1.5 * trained  # 2 (4 - 1) / 4


def test_each_process_has_its_own_share_of_the_same_step() -> None:
    mixed = [hooked_step.shares(rank, 4) for rank in range(4)]
    assert [task for *_, task in mixed] == [Task.MMU, Task.MMU, Task.T2I, Task.T2I]

    def rows(parts: list[tuple[Batch, ...]]) -> list[list[int]]:
        return sorted(
            row[mask].tolist() for part in parts for b in part for row, mask in zip(b.input_ids, b.attention_mask, strict=True)
        )

    assert rows([both for both, _, _ in mixed]) == rows([alone for _, alone, _ in mixed])
    for _, alone, task in mixed:
        assert all((batch.task_ids == task).all() for batch in alone)


@pytest.mark.slow
def test_four_real_processes() -> None:
    """Gradients of both ways are equal (the workers raise otherwise), and so are the hooks' and the plan's counts."""
    result = allreduce.run(4)
    assert [row.value for row in result.rows] == [PRIVATE, PRIVATE / 2, 0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("processes", [2, 5])
def test_too_few_processes_are_refused(processes: int) -> None:
    with pytest.raises(ValueError, match=f"processes={processes} must be even and at least 4"):
        allreduce.run(processes)


def test_cache_by_hand() -> None:
    """Five images of 16 tokens in batches of two: three calls without the cache, none with it, 32 bytes an image."""
    result = cache.run(SIZE, count=5, batch_size=2)
    assert [row.value for row in result.rows] == [3, 0, 32]
    assert [row.met for row in result.rows] == [None, True, True]


def test_other_tokens_in_the_cache_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    epoch, off = cache.epoch, iter([0, 1])

    def shifted(*arguments: Any) -> tuple[int, list[torch.Tensor]]:
        calls, tokens = epoch(*arguments)
        return calls, [batch + next(off) for batch in tokens]

    monkeypatch.setattr(cache, "epoch", shifted)
    with pytest.raises(SidesDifferError, match="other image tokens"):
        cache.run(SIZE, count=2, batch_size=2)


@pytest.fixture
def three() -> list[Sample]:
    """Samples of 2, 3 and 5 tokens; the last is a drawing."""
    plain = [Sample.of_tokens([1] * n, [0] * n, [-100] * n, [-1] * n) for n in (2, 3)]
    return [*plain, Sample.of_tokens([1] * 5, [0, *[1] * 4], [-100] * 5, [-1, 3, 3, 3, 3])]


def test_useful_shares_by_hand(three: list[Sample]) -> None:
    assert packing.useful_share((collate(three, 0),)) == 10 / 15
    assert packing.useful_share(packing.by_task(three, 0)) == 10 / (2 * 3 + 5)
    assert packing.useful_share((pack(three, 5, 0),)) == 1.0
    assert packing.useful_share((pack(three, 9, 0),)) == 1.0  # 5 + 3 + 2 in two rows of 5
    assert packing.useful_share((pack([*three, three[0]], 6, 0),)) == 12 / 15  # 5, 3 + 2, 2 in three rows of 5


def test_the_mixture_is_what_was_asked(builder: SequenceBuilder) -> None:
    made = samples(builder, SIZE, (5, 1, 4), seed=0, words=(8, 24))
    kinds = [(len(sample.pictures), max(sample.image_tokens) >= 0) for sample in made]
    assert sorted(kinds) == [(0, False)] + [(0, True)] * 4 + [(1, False)] * 5
    assert made[0].input_ids == samples(builder, SIZE, (5, 1, 4), seed=0, words=(8, 24))[0].input_ids


def test_packing_at_a_tiny_size() -> None:
    result = packing.run(SIZE, count=40, row=2048)
    packed, tasks, one = (row.value for row in result.rows[:3])
    assert one < tasks < 0.98 <= packed
    assert result.details["difference"] < 1e-5


def test_a_lost_boundary_is_told(builder: SequenceBuilder, make_model: Callable[..., UniJanusForConditionalGeneration]) -> None:
    few = samples(builder, SIZE, (1, 1, 1), seed=0, words=(8, 24))
    pad = builder.tokenizer.pad_token_id
    packed, padded = pack(few, 512, pad), collate(few, pad)
    model = make_model()
    assert packing.difference(model, padded, packed) < 1e-5
    with pytest.raises(SidesDifferError, match="of packed rows is off"):
        packing.difference(model, padded, replace(packed, position_ids=torch.arange(np.prod(packed.input_ids.shape)).view(1, -1)))
