"""The batch: its parts have one shape."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from unidecouple.batch import TASK_KEYS, Batch


@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "task_ids", "labels", "image_tokens"])
def test_parts_of_different_shapes(joint_batch: tuple[Batch, Batch], name: str) -> None:
    batch = joint_batch[0]
    with pytest.raises(ValueError, match=rf"must have one \(batch, length\) shape.*'{name}': \(2, 1\)"):
        replace(batch, **{name: getattr(batch, name)[:, :1]})


def test_tokens_are_counted_without_padding(joint_batch: tuple[Batch, Batch]) -> None:
    batch = joint_batch[0]
    assert batch.num_tokens == sum(map(sum, batch.attention_mask.tolist())) < batch.input_ids.numel()


def test_to_moves_every_part(joint_batch: tuple[Batch, Batch]) -> None:
    for batch in joint_batch:
        moved = batch.to("meta")
        for field in fields(batch):
            part = getattr(batch, field.name)
            assert getattr(moved, field.name) is None if part is None else getattr(moved, field.name).is_meta
        assert torch.equal(batch.to("cpu").input_ids, batch.input_ids)


def test_task_names() -> None:
    assert TASK_KEYS == ("mmu", "t2i")
