"""The routing map against counts by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from unidecouple.batch import Batch, Task
from unidecouple.diagnose.routing import routing_map
from unidecouple.models.janus import UniJanusForConditionalGeneration

MakeModel = Callable[..., UniJanusForConditionalGeneration]
Joint = tuple[Batch, Batch]


def test_shares_are_those_of_the_real_tokens(make_model: MakeModel, joint_batch: Joint) -> None:
    model = make_model(ffn="ta_moe", experts_per_task=3, num_experts_per_tok=2)
    rows = routing_map(model, joint_batch)
    assert [row["layer"] for row in rows] == [0, 1]
    for index, row in enumerate(rows):
        for task in Task:
            groups, experts = torch.zeros(2), torch.zeros(6)
            for batch in joint_batch:
                decided = model.decode_batch(batch).routing[index]
                for place in (batch.attention_mask & (batch.task_ids == task)).flatten().nonzero().flatten().tolist():
                    groups[decided.group[place]] += 1
                    experts[decided.expert[place]] += 1
            assert row["group_share"][task.key] == pytest.approx((groups / groups.sum()).tolist())
            assert row["expert_share"][task.key] == pytest.approx((experts / experts.sum()).tolist())


def test_by_label_each_task_keeps_to_its_own_group(make_model: MakeModel, joint_batch: Joint) -> None:
    for row in routing_map(make_model(ffn="ta_moe", task_routing="label", alpha_init=0.25), joint_batch):
        assert row["group_share"] == {"mmu": [1.0, 0.0], "t2i": [0.0, 1.0]}
        assert sum(row["expert_share"]["mmu"][:2]) == pytest.approx(1.0)
        assert sum(row["expert_share"]["t2i"][2:]) == pytest.approx(1.0)
        assert row["alpha"] == pytest.approx(0.25)


def test_who_has_no_task_router(make_model: MakeModel, joint_batch: Joint) -> None:
    assert routing_map(make_model(), joint_batch) == []
    plain = routing_map(make_model(ffn="moe", shared_expert=False), joint_batch)
    assert [(row["group_share"], row["alpha"]) for row in plain] == [({"mmu": [1.0], "t2i": [1.0]}, None)] * 2


def test_a_task_without_tokens_has_no_share(make_model: MakeModel, joint_batch: Joint) -> None:
    rows = routing_map(make_model(ffn="ta_moe", task_routing="label"), joint_batch[:1])
    assert [set(row["group_share"]) for row in rows] == [{"mmu"}, {"mmu"}]
