"""TA-MoE against a loop over tokens written out by hand; gradients of experts that no token reached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unidecouple.batch import Batch, Task
from unidecouple.methods.objective.group_router import group_router_loss
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.models.experts import Experts
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.moe import FeedForward, MixtureOfExperts
from unidecouple.models.router import Routing

HIDDEN = 16
MIXED = torch.tensor([[0, 1, 1, 0, 1, 0, 0], [1, 1, 0, 1, 0, 1, 1]])
LORA = {"lora_rank": 4, "lora_targets": ["experts", "shared_expert"]}
Make = Callable[..., MixtureOfExperts]


@pytest.fixture
def make(enliven: Callable[[nn.Module, int], None]) -> Make:
    def of(**text: Any) -> MixtureOfExperts:
        config = UniLlamaConfig(hidden_size=HIDDEN, intermediate_size=24, num_attention_heads=2, **{"ffn": "ta_moe"} | text)
        moe = MixtureOfExperts(config)
        enliven(moe, 0)
        return moe

    return of


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, HIDDEN, generator=torch.Generator().manual_seed(seed))


def expert_output(moe: MixtureOfExperts, number: int, x: Tensor) -> Tensor:
    """One expert on one token, its low-rank update added to its matrices."""
    experts = moe.experts
    gate_up, down = experts.gate_up_proj[number], experts.down_proj[number]
    if experts.lora_rank:
        gate_up = gate_up + experts.lora_scale * experts.gate_up_lora_B[number] @ experts.gate_up_lora_A[number]
        down = down + experts.lora_scale * experts.down_lora_B[number] @ experts.down_lora_A[number]
    gate, up = (gate_up @ x).chunk(2)
    return down @ (F.silu(gate) * up)


def by_hand(moe: MixtureOfExperts, x: Tensor, groups: Tensor, per_group: int, k: int) -> Tensor:
    out = []
    for token, group in zip(x.flatten(0, 1), groups.flatten().tolist(), strict=True):
        probs = (moe.gate.weight[group] @ token).softmax(-1)
        best = probs.argsort(descending=True)[:k].tolist()
        routed = sum(probs[i] / probs[best].sum() * expert_output(moe, group * per_group + i, token) for i in best)
        shared = 0 if moe.shared_expert is None else moe.alpha * moe.shared_expert(token, torch.tensor(group))
        out.append(routed + shared)
    return torch.stack(out).view_as(x)


@pytest.mark.parametrize("backend", ["grouped_mm", "loop"])
@pytest.mark.parametrize(
    "text", [{}, {"num_experts_per_tok": 2}, {"shared_expert": False}, LORA, {"ffn": "moe", "num_experts_per_tok": 3}]
)
def test_equals_a_loop_over_tokens(make: Make, backend: str, text: dict[str, Any]) -> None:
    moe = make(num_experts=6, experts_backend=backend, **text)
    groups = MIXED if text.get("ffn") != "moe" else torch.zeros_like(MIXED)
    y, routing = moe(tokens(2, 7), MIXED, "label")
    per_group, k = routing.expert_probs.shape[1], routing.expert.shape[1]
    assert (per_group, k) == ((6, 3) if text.get("ffn") == "moe" else (3, text.get("num_experts_per_tok", 1)))
    torch.testing.assert_close(y, by_hand(moe, tokens(2, 7), groups, per_group, k), atol=1e-5, rtol=1e-5)


def run(moe: MixtureOfExperts, x: Tensor, task_ids: Tensor | None, routing: str) -> dict[str, Tensor | None]:
    """Output, and the gradients of a random projection of it."""
    x = x.clone().requires_grad_()
    y, _ = moe(x, task_ids, routing)
    (y * tokens(*y.shape[:2], seed=5)).sum().backward()
    return {"output": y.detach(), "input": x.grad} | {name: weight.grad for name, weight in moe.named_parameters()}


@pytest.mark.parametrize("lora", [{}, LORA])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("task_ids", [MIXED, torch.zeros_like(MIXED), MIXED[:1, :2]], ids=["mixed", "one task", "two tokens"])
@pytest.mark.parametrize("routing", ["learned", "label"])
def test_backends_agree(make: Make, lora: dict[str, Any], k: int, task_ids: Tensor, routing: str) -> None:
    of = [make(num_experts=6, num_experts_per_tok=k, experts_backend=backend, **lora) for backend in ("grouped_mm", "loop")]
    grouped, loop = (run(moe, tokens(*task_ids.shape), task_ids, routing) for moe in of)
    assert grouped.pop("router.weight") is loop.pop("router.weight") is None  # the argmax passes no gradient
    for name, value in grouped.items():
        torch.testing.assert_close(value, loop[name], atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("backend", ["grouped_mm", "loop"])
def test_experts_without_tokens_have_zero_gradients(make: Make, backend: str) -> None:
    moe = make(num_experts=6, experts_backend=backend, **LORA)
    x, task_ids = tokens(1, 2), torch.zeros(1, 2, dtype=torch.long)
    used = set(moe(x, task_ids, "label")[1].expert.flatten().tolist())
    run(moe, x, task_ids, "label")
    assert used < {0, 1, 2}  # of the group itself one is idle, of the other group all are
    for name, weight in moe.experts.named_parameters():
        assert weight.grad is not None, name
        assert {number for number in range(6) if weight.grad[number].any()} == used, name


@pytest.mark.parametrize("backend", ["grouped_mm", "loop"])
@pytest.mark.parametrize("routing", ["label", "learned"])
@pytest.mark.parametrize("task", list(Task))
def test_the_other_groups_gradient_is_exactly_zero(make: Make, backend: str, routing: str, task: Task) -> None:
    moe = make(experts_backend=backend, **LORA | {"lora_per_task": ["shared_expert"]})
    y, decision = moe(tokens(2, 7), MIXED, routing)
    assert decision.group.unique().tolist() == [0, 1]
    assert (decision.group.view_as(MIXED) == MIXED).all().item() == (routing == "label")
    (y.flatten(0, 1)[decision.group == task] ** 2).sum().backward()
    groups = {name: weight.grad.view(2, -1) for name, weight in moe.experts.named_parameters()}
    groups["gate"] = moe.gate.weight.grad.view(2, -1)
    for name, weight in moe.shared_expert.named_parameters():
        if "lora" in name:
            groups[name] = weight.grad.view(2, -1)
    assert len(groups) == 2 + 4 + 1 + 6
    for name, gradient in groups.items():
        assert gradient[task].any(), name
        assert not gradient[1 - task].any(), name


def test_one_expert_is_a_plain_ffn_for_each_task(make: Make) -> None:
    moe = make(num_experts=2)
    x = tokens(2, 7)
    y, _ = moe(x, MIXED, "label")
    shared = moe.alpha * moe.shared_expert(x)
    for task in Task:
        plain = FeedForward(UniLlamaConfig(hidden_size=HIDDEN, intermediate_size=24, num_attention_heads=2), "mlp")
        gate, up = moe.experts.gate_up_proj[task].chunk(2)
        plain.load_state_dict({"gate_proj.weight": gate, "up_proj.weight": up, "down_proj.weight": moe.experts.down_proj[task]})
        torch.testing.assert_close(y[task == MIXED], (plain(x) + shared)[task == MIXED], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_weights_sum_to_one_and_teach_the_expert_router(make: Make, k: int) -> None:
    moe = make(num_experts=6, num_experts_per_tok=k)
    probs, weight, expert = moe.gate(tokens(7), MIXED[0])
    torch.testing.assert_close(weight.sum(-1), torch.ones(7))
    torch.testing.assert_close(probs.sum(-1), torch.ones(7))
    assert (expert // 3 == MIXED[0].unsqueeze(-1)).all()
    assert expert.unique(dim=1).shape == expert.shape
    run(moe, tokens(2, 7), MIXED, "label")
    assert (moe.gate.weight.grad.flatten(1).norm(dim=1) > 1e-3).all()


def test_gradient_of_the_expert_router_by_hand(make: Make) -> None:
    """For k = 1 the gradient is that of p / stopgrad(p): (d loss / d output . expert output) * d log p."""
    moe = make(num_experts=4, shared_expert=False)
    x, seen = tokens(1, 1), torch.zeros(1, 1, dtype=torch.long)
    run(moe, x, seen, "label")
    token = x.flatten()
    probs = (moe.gate.weight[0] @ token).softmax(-1).detach()
    chosen = int(probs.argmax())
    gain = tokens(1, 1, seed=5).flatten() @ expert_output(moe, chosen, token).detach()
    expected = gain * (F.one_hot(torch.tensor(chosen), 2) - probs).unsqueeze(-1) * token
    torch.testing.assert_close(moe.gate.weight.grad[0], expected, atol=1e-5, rtol=1e-4)


def test_gradient_of_alpha_by_hand(make: Make) -> None:
    moe = make()
    x = tokens(2, 7)
    run(moe, x, MIXED, "label")
    torch.testing.assert_close(
        moe.alpha.grad, (moe.shared_expert(x) * tokens(2, 7, seed=5)).sum().detach().view(1), atol=1e-4, rtol=1e-4
    )


def test_a_fresh_task_router_sends_all_to_understanding(make: Make) -> None:
    moe = make()
    nn.init.zeros_(moe.router.weight)
    x = tokens(2, 7)
    assert not moe(x, None, "learned")[1].group.any()
    torch.testing.assert_close(moe(x, None, "learned")[0], moe(x, torch.zeros_like(MIXED), "label")[0], atol=0, rtol=0)


def test_the_plain_mixture_knows_no_tasks(make: Make) -> None:
    moe = make(ffn="moe")
    (first, routing), (second, _) = (moe(tokens(2, 7), task_ids, "label") for task_ids in (MIXED, None))
    assert torch.equal(first, second)
    assert routing.task_logits is None
    assert not routing.group.any()


def test_routing_by_label_needs_task_ids(
    make: Make, make_model: Callable[..., UniJanusForConditionalGeneration], joint_batch: tuple[Batch, Batch]
) -> None:
    with pytest.raises(ValueError, match="needs group_ids: pass task_ids"):
        make()(tokens(1, 3), None, "label")
    model = make_model(ffn="ta_moe", task_routing="label")
    with pytest.raises(ValueError, match="needs group_ids: pass task_ids"):
        model(input_ids=joint_batch[1].input_ids)


@pytest.mark.parametrize("task", list(Task))
def test_gradients_of_a_whole_model_stay_in_the_group(
    make_model: Callable[..., UniJanusForConditionalGeneration], joint_batch: tuple[Batch, Batch], task: Task
) -> None:
    """Both tasks in one step: a task's loss reaches only the experts that its own tokens visited, in every layer."""
    model = make_model(ffn="ta_moe", task_routing="label")
    output = model(batch=joint_batch)
    output.loss(task).backward()
    routing: Routing
    for number, layer in enumerate(model.decoder.layers):
        routing = output.routing[task][number]
        visited = set(routing.expert[joint_batch[task].attention_mask.flatten()].flatten().tolist())
        gradient = layer.mlp.experts.down_proj.grad
        assert {expert for expert in range(4) if gradient[expert].any()} <= visited
        assert gradient[2 * task : 2 * task + 2].any()
        if task is Task.MMU:
            assert not gradient[2:].any()  # with T2I the BOS, which counts as MMU, is one of its own tokens


def test_the_group_loss_reaches_the_task_routers_only(
    make_model: Callable[..., UniJanusForConditionalGeneration], joint_batch: tuple[Batch, Batch]
) -> None:
    model = make_model(ffn="ta_moe", **LORA)
    group_router_loss(joint_batch, model(batch=joint_batch).routing).backward()
    reached = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert reached == {f"model.language_model.layers.{layer}.mlp.router.weight" for layer in range(2)}


def test_experts_without_tokens_have_zero_gradients_whatever_the_kernel_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels may leave what memory held (pytorch #172439): ours is given one that does."""
    plain = F.grouped_mm

    def dirty(a: torch.Tensor, b: torch.Tensor, *, offs: torch.Tensor) -> torch.Tensor:
        out = plain(a, b, offs=offs)
        if out.ndim == 3:  # the gradient of the matrices
            out[offs == torch.cat([offs.new_zeros(1), offs[:-1]])] = torch.nan
        return out

    monkeypatch.setattr(F, "grouped_mm", dirty)
    experts = Experts(4, 8, 8, "grouped_mm", lora_rank=4, lora_scale=1.0)
    chosen = torch.tensor([[1], [3], [1]])
    experts(torch.randn(3, 8), chosen, torch.ones(3, 1)).square().sum().backward()
    for weight in experts.parameters():
        assert weight.grad is not None
        assert weight.grad.isfinite().all()
        assert not weight.grad[[0, 2]].any()
