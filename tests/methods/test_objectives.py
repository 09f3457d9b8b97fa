"""The group loss and load balancing, by hand on a few tokens; padding and the rare task."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from conftest import MakeModel
from unidecouple.batch import IGNORE, NO_IMAGE_TOKEN, Batch, JointBatch, Task
from unidecouple.diagnose.routing import router_hits
from unidecouple.methods.objective import AUXILIARY_LOSSES, AuxiliaryLoss, LoadBalance, Microbatch, Objective, SelfDistillation
from unidecouple.methods.objective.balance import balance_loss
from unidecouple.methods.objective.group_router import group_router_loss
from unidecouple.models.router import Routing
from unidecouple.train.parallel import Parallel
from unidecouple.train.step import count_totals


def batch(task_ids: list[list[int]], mask: list[list[int]] | None = None) -> Batch:
    tasks = torch.tensor(task_ids)
    keep = torch.ones_like(tasks) if mask is None else torch.tensor(mask)
    return Batch(tasks, keep.bool(), tasks, torch.full_like(tasks, IGNORE), torch.full_like(tasks, NO_IMAGE_TOKEN))


def routed(
    logits: list[list[float]] | None,
    group: list[int],
    probs: list[list[float]],
    expert: list[list[int]],
    sizes: tuple[int, ...] = (),
) -> Routing:
    said = None if logits is None else torch.tensor(logits)
    return Routing(said, torch.tensor(group), torch.tensor(probs), torch.tensor(expert), sizes)


def said(logits: list[list[float]]) -> Routing:
    """What the task router said; the rest does not matter."""
    return routed(logits, [0] * len(logits), [[1.0]] * len(logits), [[0]] * len(logits))


def loss_of(right: float, wrong: float) -> float:
    return -math.log(math.exp(right) / (math.exp(right) + math.exp(wrong)))


def test_group_loss_by_hand() -> None:
    """Two layers; task 0 has three tokens and task 1 has one, yet each is half of the loss. Padding is not counted."""
    of = batch([[0, 0, 1], [0, 0, 0]], [[1, 1, 1], [1, 0, 0]])
    pad = [50.0, -50.0]
    layers = [
        said([[1.0, 0.0], [0.0, 2.0], [0.0, 3.0], [0.5, 0.5], pad, pad[::-1]]),
        said([[0.0, 1.0], [4.0, 0.0], [2.0, 0.0], [0.0, 0.0], pad, pad]),
    ]
    zero = [loss_of(1, 0), loss_of(0, 2), loss_of(0.5, 0.5), loss_of(0, 1), loss_of(4, 0), loss_of(0, 0)]
    one = [loss_of(3, 0), loss_of(0, 2)]
    assert group_router_loss([of], [layers]).item() == pytest.approx((sum(zero) / 6 + sum(one) / 2) / 2)
    assert group_router_loss([of], [layers], mmu_weight=3.0).item() == pytest.approx((3 * sum(zero) / 6 + sum(one) / 2) / 4)
    assert router_hits([of], [layers]).tolist() == pytest.approx([4 / 2, 1 / 2])


def test_group_loss_over_batches() -> None:
    """Tasks usually come in batches of their own; a task's tokens are averaged over all batches together."""
    batches = [batch([[0]]), batch([[0, 1, 1]])]
    layers = [[said([[1.0, 0.0]])], [said([[2.0, 0.0], [0.0, 1.0], [0.0, 5.0]])]]
    expected = ((loss_of(1, 0) + loss_of(2, 0)) / 2 + (loss_of(1, 0) + loss_of(5, 0)) / 2) / 2
    assert group_router_loss(batches, layers).item() == pytest.approx(expected)


def test_parts_of_a_step_sum_to_the_step() -> None:
    """One task is missing in the second part; each token weighs what it weighs in the whole."""
    batches = [batch([[0, 1]]), batch([[1, 1]])]
    layers = [[said([[1.0, 0.0], [0.0, 2.0]])], [said([[0.0, 1.0], [0.0, 5.0]])]]
    whole = group_router_loss(batches, layers, mmu_weight=3.0)
    parts = [group_router_loss([b], [r], mmu_weight=3.0, tokens=torch.tensor([1, 3])) for b, r in zip(batches, layers, strict=True)]
    assert sum(parts).item() == pytest.approx(whole.item())


def test_group_loss_of_one_task_is_that_tasks() -> None:
    assert group_router_loss([batch([[1, 1]])], [[said([[0.0, 1.0], [0.0, 2.0]])]]).item() == pytest.approx(
        (loss_of(1, 0) + loss_of(2, 0)) / 2
    )


def test_without_a_task_router_there_is_no_group_loss() -> None:
    plain = routed(None, [0, 0], [[0.5, 0.5]] * 2, [[0], [1]])
    for layers in ([plain], []):
        assert group_router_loss([batch([[0, 1]])], [layers]).item() == 0.0
        assert router_hits([batch([[0, 1]])], [layers]) is None


def test_group_loss_teaches_only_the_router_it_reads() -> None:
    logits = torch.tensor([[0.3, -0.2], [0.1, 0.4]], requires_grad=True)
    group_router_loss(
        [batch([[0, 1]])], [[Routing(logits, torch.tensor([0, 0]), torch.ones(2, 1), torch.zeros(2, 1).long())]]
    ).backward()
    expected = (logits.softmax(-1) - torch.eye(2)) / 2  # each of two tasks weighs one half
    torch.testing.assert_close(logits.grad, expected.detach())


@pytest.mark.parametrize("experts", [2, 3, 4])
def test_balance_is_one_when_even_and_e_when_collapsed(experts: int) -> None:
    tokens = 2 * experts
    even = routed(None, [0] * tokens, [[1 / experts] * experts] * tokens, [[i % experts] for i in range(tokens)])
    one = [1.0] + [0.0] * (experts - 1)
    collapsed = routed(None, [0] * tokens, [one] * tokens, [[0]] * tokens)
    assert balance_loss([batch([[0] * tokens])], [[even]]).item() == pytest.approx(1)
    assert balance_loss([batch([[0] * tokens])], [[collapsed]]).item() == pytest.approx(experts)
    assert balance_loss([batch([[0] * tokens])], [[even, collapsed]]).item() == pytest.approx((1 + experts) / 2)


def test_balance_of_two_groups_by_hand() -> None:
    """Group 0: three of four tokens choose expert 0. Group 1 (experts 2 and 3): both choose 3. One token is padding."""
    probs = [[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8], [0.1, 0.9], [0.4, 0.6], [1.0, 0.0]]
    routing = routed(None, [0, 0, 0, 0, 1, 1, 0], probs, [[0], [0], [0], [1], [3], [3], [0]], (2, 2))
    zero = 2 * (0.75 * 0.6 + 0.25 * 0.4)
    one = 2 * 1.0 * 0.75
    of = batch([[0, 0, 0, 0, 1, 1, 0]], [[1, 1, 1, 1, 1, 1, 0]])
    assert balance_loss([of], [[routing]]).item() == pytest.approx((zero + one) / 2)


def test_balance_with_two_experts_a_token() -> None:
    """Shares are of assignments, so they sum to one for any k."""
    probs = [[0.5, 0.3, 0.2], [0.5, 0.1, 0.4]]
    routing = routed(None, [0, 0], probs, [[0, 1], [0, 2]])
    assert balance_loss([batch([[0, 0]])], [[routing]]).item() == pytest.approx(3 * (0.5 * 0.5 + 0.25 * 0.2 + 0.25 * 0.3))


UNEQUAL = routed(
    None,
    [0, 0, 1, 0, 1, 0],
    [[0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [1, 0, 0], [0.1, 0.1, 0.8], [1, 0, 0], [0.4, 0.4, 0.2]],
    [[0], [1], [3], [2], [3], [0]],
    (3, 1),
)
"""A group of three experts and one of a single expert."""
ZERO = 3 * (2 / 4 * 1.2 / 4 + 1 / 4 * 1.4 / 4 + 1 / 4 * 1.4 / 4)


def test_balance_of_unequal_groups_by_hand() -> None:
    """A group of one is balanced whatever it does: its term is one. Both groups weigh the same."""
    assert balance_loss([batch([[0] * 6])], [[UNEQUAL]]).item() == pytest.approx((ZERO + 1) / 2)


def test_a_group_without_tokens_has_no_say() -> None:
    keep = [[1, 1, 0, 1, 0, 1]]
    assert balance_loss([batch([[0] * 6], keep)], [[UNEQUAL]]).item() == pytest.approx(ZERO)
    assert balance_loss([batch([[0] * 6], [[0] * 6])], [[UNEQUAL]]).item() == 0


def test_a_groups_tokens_count_together_over_batches() -> None:
    """Each batch for itself uses one expert; together they use both alike."""
    halves = [routed(None, [0, 0], [[0.5, 0.5]] * 2, [[expert]] * 2) for expert in (0, 1)]
    batches = [batch([[0, 0]]), batch([[1, 1]])]
    assert balance_loss(batches, [[half] for half in halves]).item() == pytest.approx(1)
    lone = routed(None, [0, 0], [[0.9, 0.1]] * 2, [[0]] * 2)
    assert balance_loss(batches, [[lone], [lone]]).item() == pytest.approx(2 * 0.9)


def test_shares_of_processes_sum_to_the_whole() -> None:
    """Values and gradients; one process may lack a group altogether."""
    whole = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4], [0.2, 0.8]])
    groups, experts = [0, 0, 0, 1], [[0], [1], [0], [3]]
    cut = [slice(0, 1), slice(1, 4)]

    def loss(probs: torch.Tensor, rows: slice, total: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        routing = Routing(None, torch.tensor(groups[rows]), probs[rows], torch.tensor(experts[rows]), (2, 2))
        return balance_loss([batch([[0] * len(groups[rows])])], [[routing]], total)

    sums: list[torch.Tensor] = []

    def remember(value: torch.Tensor) -> torch.Tensor:
        sums.append(value)
        return value

    for rows in cut:
        loss(whole, rows, remember)
    one, several = whole.clone().requires_grad_(), whole.clone().requires_grad_()
    alone = loss(one, slice(0, 4), lambda value: value)
    parts = [loss(several, rows, lambda value: sums[0] + sums[1]) for rows in cut]
    assert sum(part.item() for part in parts) == pytest.approx(alone.item())
    alone.backward()
    torch.stack(parts).sum().backward()
    torch.testing.assert_close(several.grad, one.grad)
    assert one.grad.any()


def test_gradient_of_the_balance_by_hand() -> None:
    """``e share_i / tokens`` for every token's probability: the shares themselves pass none."""
    probs = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]], requires_grad=True)
    balance_loss([batch([[0] * 3])], [[Routing(None, torch.zeros(3).long(), probs, torch.tensor([[0], [1], [0]]))]]).backward()
    torch.testing.assert_close(probs.grad, 2 * torch.tensor([[2 / 3, 1 / 3]] * 3) / 3)


def test_balance_of_a_dense_model_is_zero() -> None:
    assert balance_loss([batch([[0, 1]])], [[]]).item() == 0.0


MODE = {"lora_rank": 4, "lora_targets": ["mlp"], "lora_kind": "modality", "lora_experts": 2, "group_by": "modality"}
DECODERS: dict[type[AuxiliaryLoss], dict[str, Any]] = {SelfDistillation: MODE}


@pytest.mark.parametrize("kind", AUXILIARY_LOSSES, ids=lambda kind: kind.__name__)
def test_every_auxiliary_loss_trains_and_sums_over_microbatches(
    kind: type[AuxiliaryLoss], make_model: MakeModel, joint_batch: JointBatch
) -> None:
    """It reaches a weight and is off at coefficient 0; micro-batches sum to the step unless it says otherwise."""
    model, loss = make_model(**DECODERS.get(kind, {"ffn": "ta_moe"})), kind()
    options = Objective(auxiliary=(loss,)).forward_options
    spans = model.spans if loss.needs_attention_stats else None

    def values(parts: Sequence[JointBatch]) -> dict[str, torch.Tensor]:
        totals, found = count_totals(parts, Parallel(), spans), dict[str, torch.Tensor]()
        for part in parts:
            output = model(batch=part, **options)
            for name, term in loss.terms(Microbatch(part, output, tuple(Task), totals)).items():
                found[name] = found.get(name, torch.zeros(())) + term.coeff * term.value
        return found

    whole = values([joint_batch])
    assert whole
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    grads = torch.autograd.grad(torch.stack([*whole.values()]).sum(), weights, allow_unused=True)
    assert any(grad is not None and grad.any() for grad in grads)
    if not loss.per_microbatch:
        parts = values([(joint_batch[0],), (joint_batch[1],)])
        assert {name: value.item() for name, value in parts.items()} == pytest.approx(
            {name: value.item() for name, value in whole.items()}, rel=1e-5
        )
    coefficients = {field.name: 0.0 for field in fields(kind) if field.name.endswith("coeff")}
    loss = replace(loss, **coefficients)
    assert values([joint_batch]) == {}
    assert not loss.per_microbatch


def test_a_kind_of_loss_is_given_once() -> None:
    with pytest.raises(ValueError, match="give each kind of loss once"):
        Objective(auxiliary=(LoadBalance(), LoadBalance(coeff=1.0)))


@pytest.mark.parametrize(
    "updates", [MODE, {"lora_rank": 4, "lora_targets": ["mlp", "attention"], "lora_per_task": ["attention", "mlp"]}]
)
@pytest.mark.parametrize("task", list(Task))
def test_divergence_by_hand(make_model: MakeModel, joint_batch: JointBatch, updates: dict[str, Any], task: Task) -> None:
    """Against a dense model with the same weights, target by target in float64."""
    model, dense = make_model(**updates), make_model()
    dense.load_state_dict({name: weight for name, weight in model.state_dict().items() if "lora_" not in name})
    found, of = model(batch=joint_batch, distill=task).divergence, joint_batch[task]
    places = of.places.before_text if task is Task.MMU else of.places.before_image
    logs = []
    for one in (dense, model):
        states = one.decode_batch(of).last_hidden_state.flatten(0, 1)[places]
        logs.append((one.lm_head if task is Task.MMU else one.image_logits)(states).double().log_softmax(-1))
    expected = (logs[0].exp() * (logs[0] - logs[1])).sum()
    assert expected > 0.1
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-4)
    assert int(found.count) == len(places)


@pytest.mark.parametrize("text", [{}, {"ffn": "ta_moe"}, {"lora_rank": 4, "lora_targets": ["mlp"]}])
def test_divergence_needs_updates_to_switch_off(make_model: MakeModel, joint_batch: JointBatch, text: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"self_distillation on a decoder that is .* needs low-rank updates"):
        make_model(**text)(batch=joint_batch, distill=Task.T2I)
