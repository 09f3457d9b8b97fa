"""The routing map against counts by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from unidecouple.batch import Batch, Task
from unidecouple.diagnose.routing import count_routing, routing_map, routing_rows
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.router import Routing

MakeModel = Callable[..., UniJanusForConditionalGeneration]
Joint = tuple[Batch, Batch]


def test_shares_are_those_of_the_real_tokens(make_model: MakeModel, joint_batch: Joint) -> None:
    model = make_model(ffn="ta_moe", num_experts=6, num_experts_per_tok=2)
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


def routing(experts: list[int], probs: list[list[float]], groups: list[int] | None = None) -> Routing:
    """Decisions of one layer on as many tokens as ``experts``."""
    return Routing(None, torch.tensor(groups or [0] * len(experts)), torch.tensor(probs), torch.tensor(experts).unsqueeze(-1))


def tokens(tasks: list[int], real: int) -> Batch:
    """One row of text of the given tasks, of which the first ``real`` are no padding."""
    ids, length = torch.zeros(1, len(tasks), dtype=torch.long), len(tasks)
    mask = torch.arange(length).unsqueeze(0) < real
    return Batch(ids, mask, torch.tensor([tasks]), ids - 100, ids - 1)


def test_counts_and_entropies_by_hand() -> None:
    """Four experts in one group. Understanding: e0 e0 e1 e2, sure; generation: e1 e1, undecided; the last token is padding."""
    sure, torn = [1.0, 0.0, 0.0, 0.0], [0.25] * 4
    decided = routing([0, 0, 1, 2, 1, 1, 3], [sure] * 4 + [torn] * 2 + [torn])
    counts = count_routing((tokens([0, 0, 0, 0, 1, 1, 1], 6),), ((decided,),), (4,))
    assert counts is not None
    assert counts[0].tolist() == [[2, 1, 1, 0, pytest.approx(0), 4], [0, 2, 0, 0, pytest.approx(2), 2]]
    (row,) = routing_rows(counts, [5], (4,))
    assert row["layer"] == 5
    assert row["expert_share"] == {"mmu": [0.5, 0.25, 0.25, 0.0], "t2i": [0.0, 1.0, 0.0, 0.0]}
    assert row["load_entropy"] == {"mmu": pytest.approx(1.5 / 2), "t2i": pytest.approx(0.0)}, "in bits, of two bits"
    assert row["token_entropy"] == {"mmu": pytest.approx(0.0), "t2i": pytest.approx(1.0)}
    assert row["dead"] == [3]


def test_the_load_is_measured_inside_groups() -> None:
    """Half of the tokens in each group: all to one expert there, evenly here; uneven sizes."""
    probs = [[0.5, 0.5, 0.0]] * 2 + [[1.0, 0.0, 0.0]] * 3
    counts = count_routing((tokens([0] * 5, 5),), ((routing([0, 0, 2, 3, 4], probs, [0, 0, 1, 1, 1]),),), (2, 3))
    assert counts is not None
    (row,) = routing_rows(counts, [0], (2, 3))
    assert row["group_share"] == {"mmu": [pytest.approx(0.4), pytest.approx(0.6)]}
    assert row["load_entropy"]["mmu"] == pytest.approx(0.4 * 0 + 0.6 * 1)
    assert row["token_entropy"]["mmu"] == pytest.approx(0.4 * 1 + 0.6 * 0)
    assert (row["dead"], row["sizes"]) == ([1], [2, 3])


def test_a_group_without_tokens_has_no_dead_experts_and_single_experts_no_entropy() -> None:
    counts = count_routing((tokens([0, 0], 2),), ((routing([0, 0], [[1.0], [1.0]]),),), (1, 1))
    assert counts is not None
    (row,) = routing_rows(counts, [0], (1, 1))
    assert (row["dead"], row["load_entropy"], row["token_entropy"]) == ([], {"mmu": None}, {"mmu": None})


def test_counts_add_up_over_batches(make_model: MakeModel, joint_batch: Joint) -> None:
    model = make_model(ffn="ta_moe", num_experts=6, num_experts_per_tok=2)
    sizes = model.config.text_config.expert_groups
    routings = model(batch=joint_batch).routing
    whole = count_routing(joint_batch, routings, sizes)
    parts = [count_routing((batch,), (of,), sizes) for batch, of in zip(joint_batch, routings, strict=True)]
    assert whole is not None
    torch.testing.assert_close(whole, parts[0] + parts[1])
    assert whole[:, :, :-2].sum().item() == 2 * 2 * sum(int(batch.attention_mask.sum()) for batch in joint_batch), "2 layers, k = 2"
    assert count_routing(joint_batch, ((), ()), sizes) is None
