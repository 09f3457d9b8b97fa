"""Ablations against models whose answer is known: parts that do nothing cost nothing, parts that do all cost all."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from unidecouple.batch import Batch, Task
from unidecouple.diagnose.ablation import AblationCost, ablations
from unidecouple.models import decoder
from unidecouple.models.groups import token_groups
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.moe import MixtureOfExperts

MakeModel = Callable[..., UniJanusForConditionalGeneration]
Joint = tuple[Batch, Batch]


def measure(
    model: UniJanusForConditionalGeneration, joint: Joint
) -> tuple[dict[str, float], dict[tuple[str, int | None, str], AblationCost]]:
    intact, costs = ablations(model, {task: [(joint[task],)] * 2 for task in Task})
    return intact, {(cost.part, cost.layer, cost.task): cost for cost in costs}


def mixtures(model: UniJanusForConditionalGeneration) -> list[MixtureOfExperts]:
    return [layer.mlp for layer in model.decoder.layers]


def test_a_dense_model_has_no_parts(make_model: MakeModel, joint_batch: Joint) -> None:
    model = make_model()
    intact, costs = measure(model, joint_batch)
    assert costs == {}
    assert intact["mmu"] == pytest.approx(model(batch=(joint_batch[0],)).loss(Task.MMU).item())


def test_every_part_once_all_layers_and_each(make_model: MakeModel, joint_batch: Joint) -> None:
    _, costs = measure(make_model(ffn="ta_moe"), joint_batch)
    parts = {(part, layer) for part, layer, _ in costs}
    named = {(part, layer) for part in ("shared expert", "mmu group", "t2i group") for layer in (None, 0, 1)}
    assert parts == named | {(f"e{expert}", layer) for expert in range(4) for layer in (0, 1)}
    _, plain = measure(make_model(ffn="moe", shared_expert=False), joint_batch)
    assert {part for part, _, _ in plain} == {"e0", "e1", "e2", "e3"}


def test_the_shared_expert_by_hand(make_model: MakeModel, joint_batch: Joint) -> None:
    """The cost is that of a model that never had it."""
    model = make_model(ffn="ta_moe", alpha_init=0.7)
    intact, costs = measure(model, joint_batch)
    for mixture in mixtures(model):
        torch.nn.init.zeros_(mixture.alpha)
    for task in Task:
        without = model(batch=(joint_batch[task],)).loss(task).item()
        assert costs["shared expert", None, task.key].cost == pytest.approx(without - intact[task.key], abs=1e-6)
        assert costs["shared expert", None, task.key].error == pytest.approx(0.0, abs=1e-7), "the same batch twice"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ({"ffn": "ta_moe", "task_routing": "label"}, ("mmu", "t2i")),
        ({"ffn": "ta_moe", "task_routing": "label", "lora_rank": 4, "lora_targets": ["experts", "router"]}, ("mmu", "t2i")),
        ({"ffn": "ta_moe", "task_routing": "label", "lora_rank": 4, "lora_targets": ["router"]}, ("mmu", "t2i")),
        ({"ffn": "typed_moe", "group_by": "image_out", "group_sizes": [3, 1]}, ("und", "gen")),
        (
            {"ffn": "typed_moe", "group_by": "type", "num_experts": 8, "group_sizes": [2, 4, 2], "num_experts_per_tok": 2},
            ("text", "image_in", "image_out"),
        ),
        ({"per_group_layers": [0, 1], "per_group_norm": True, "group_by": "modality"}, ("text", "image")),
        ({"per_group_layers": [1], "group_by": "image_out"}, ("und", "gen")),
    ],
    ids=str,
)
def test_a_group_costs_what_it_costs_to_be_labelled_another(
    make_model: MakeModel, joint_batch: Joint, monkeypatch: pytest.MonkeyPatch, kind: dict[str, Any], names: tuple[str, ...]
) -> None:
    """The oracle changes no weight: tokens of the group are labelled as the other."""
    model = make_model(shared_expert=False, **kind)
    intact, costs = measure(model, joint_batch)
    worth = []
    for group, other in itertools.permutations(range(len(names)), 2):
        part = f"{names[group]} group" + (f" by {names[other]}" if len(names) > 2 else "")
        with monkeypatch.context() as patch:
            patch.setattr(decoder, "token_groups", lambda *labels, a=group, b=other: _as_if(token_groups(*labels), a, b))
            for task in Task:
                without = model(batch=(joint_batch[task],)).loss(task).item()
                assert costs[part, None, task.key].cost == pytest.approx(without - intact[task.key], abs=1e-5)
                worth.append(abs(costs[part, None, task.key].cost))
    assert max(worth) > 1e-3
    assert {part for part, layer, _ in costs if layer is None} == {part for part, _, _ in costs if " group" in part}


def _as_if(labels: Tensor | None, group: int, other: int) -> Tensor | None:
    return None if labels is None else labels.masked_fill(labels == group, other)


def test_a_group_without_tokens_of_a_task_costs_it_nothing(make_model: MakeModel, joint_batch: Joint) -> None:
    _, costs = measure(make_model(ffn="ta_moe", task_routing="label"), joint_batch)
    assert costs["t2i group", None, "mmu"].cost == 0.0
    _, untied = measure(make_model(per_group_layers=[1], per_group_norm=True, group_by="task"), joint_batch)
    assert {(part, layer) for part, layer, _ in untied} == {(f"{task.key} group", layer) for task in Task for layer in (None, 1)}
    assert untied["t2i group", 1, "mmu"].cost == 0.0
    assert abs(untied["mmu group", 1, "mmu"].cost) > 1e-3


def test_equal_groups_are_worth_nothing_apart(make_model: MakeModel, joint_batch: Joint) -> None:
    model = make_model(ffn="ta_moe")
    with torch.no_grad():
        for mixture in mixtures(model):
            for weight in mixture.experts.parameters():
                weight[2:] = weight[:2]
            mixture.gate.weight[1] = mixture.gate.weight[0]
    _, costs = measure(model, joint_batch)
    for task in Task:
        assert costs["mmu group", None, task.key].cost == costs["t2i group", 1, task.key].cost == 0.0


def test_an_expert_nobody_is_sent_to_costs_nothing_and_the_only_one_all(make_model: MakeModel, joint_batch: Joint) -> None:
    model = make_model(ffn="moe", shared_expert=False, lora_rank=4, lora_targets=["experts"])
    with torch.no_grad():
        for mixture in mixtures(model):
            mixture.gate.weight[0] = 0.0  # a tie, always broken alike
    (only,) = set(model(batch=(joint_batch[1],)).routing[0][0].expert.flatten().tolist())
    intact, costs = measure(model, joint_batch)
    assert {costs[f"e{n}", 0, "t2i"].cost for n in range(4) if n != only} == {0.0}
    with torch.no_grad():
        mixtures(model)[0].experts.down_proj.zero_()
        mixtures(model)[0].experts.down_lora_B.zero_()
    nothing = model(batch=(joint_batch[1],)).loss(Task.T2I).item()
    assert costs[f"e{only}", 0, "t2i"].cost == pytest.approx(nothing - intact["t2i"], abs=1e-5)


@pytest.mark.parametrize(
    "kind",
    [
        {"ffn": "ta_moe", "lora_rank": 4, "lora_targets": ["experts"]},
        {"ffn": "ta_moe", "shared_expert": False},
        {"per_group_layers": [0, 1], "per_group_norm": True},
    ],
    ids=["shared expert", "group", "set"],
)
def test_the_model_is_put_back_bit_for_bit(make_model: MakeModel, joint_batch: Joint, kind: dict[str, Any]) -> None:
    model = make_model(**kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def as_before() -> bool:
        now = model.state_dict()
        return now.keys() == before.keys() and all(torch.equal(value, before[name]) for name, value in now.items())

    measure(model, joint_batch)
    assert as_before()

    whole, calls = model.forward, iter(range(100))

    def breaks_down(**arguments: object) -> object:
        if next(calls) == 6:  # four batches as they are, two without a part, and now
            assert not as_before()
            raise ArithmeticError
        return whole(**arguments)

    model.forward = breaks_down  # type: ignore[method-assign]
    with pytest.raises(ArithmeticError):
        measure(model, joint_batch)
    assert as_before()
