"""Mixtures with labelled groups of unequal size: against a loop by hand, gradients, what must be given, save and load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unidecouple.batch import Batch, Modality, Task
from unidecouple.convert.load import load
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.models.groups import PRIVATE, token_groups
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.moe import MixtureOfExperts
from unidecouple.models.router import ExpertRouter
from unidecouple.train.trainable import hold_absent_tasks

HIDDEN = 16
DRAWN = {"group_by": "image_out", "num_experts": 4, "group_sizes": [3, 1]}
TYPES = {"group_by": "type", "num_experts": 8, "group_sizes": [2, 1, 5]}
PAIRS = {"group_by": "type", "num_experts": 10, "group_sizes": [3, 2, 5], "num_experts_per_tok": 2}
ONE_SIZE = {"group_by": "type", "num_experts": 6}
every_shape = pytest.mark.parametrize("text", [DRAWN, TYPES, PAIRS, ONE_SIZE], ids=str)

Make = Callable[..., MixtureOfExperts]
MakeModel = Callable[..., UniJanusForConditionalGeneration]
Joint = tuple[Batch, Batch]


@pytest.fixture
def make(enliven: Callable[[nn.Module, int], None]) -> Make:
    def of(**text: Any) -> MixtureOfExperts:
        moe = MixtureOfExperts(config(**text))
        enliven(moe, 0)
        return moe

    return of


def config(**text: Any) -> UniLlamaConfig:
    return UniLlamaConfig(hidden_size=HIDDEN, intermediate_size=24, num_attention_heads=2, ffn="typed_moe", **text)


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, HIDDEN, generator=torch.Generator().manual_seed(1))


def of_all_groups(moe: MixtureOfExperts) -> Tensor:
    return (torch.arange(14) % moe.num_groups).view(2, 7)


@every_shape
@pytest.mark.parametrize("backend", ["grouped_mm", "loop"])
def test_equals_a_loop_over_tokens(make: Make, backend: str, text: dict[str, Any]) -> None:
    """Each token sees the router rows and experts of its group, counted out from the group's first."""
    moe = make(experts_backend=backend, **text)
    x, groups = tokens(2, 7), of_all_groups(moe)
    y, routing = moe(x, groups, "label")
    rows, experts = moe.gate.weight.reshape(-1, HIDDEN), moe.experts
    sizes = text.get("group_sizes", [2, 2, 2])
    for place, (token, group) in enumerate(zip(x.flatten(0, 1), groups.flatten().tolist(), strict=True)):
        first, size = sum(sizes[:group]), sizes[group]
        probs = (rows[first : first + size] @ token).softmax(-1)
        best = probs.argsort(descending=True)[: text.get("num_experts_per_tok", 1)].tolist()
        out = moe.alpha * moe.shared_expert(token)
        for number in best:
            gate, up = (experts.gate_up_proj[first + number] @ token).chunk(2)
            out = out + probs[number] / probs[best].sum() * (experts.down_proj[first + number] @ (F.silu(gate) * up))
        torch.testing.assert_close(y.flatten(0, 1)[place], out, atol=1e-5, rtol=1e-5)
        assert routing.expert[place].tolist() == [first + number for number in best]
        torch.testing.assert_close(routing.expert_probs[place], F.pad(probs, (0, max(sizes) - size)))


def test_an_expert_whose_probability_rounds_to_zero_is_still_of_the_group() -> None:
    """Past a small group's end stand probabilities of zero, which must not be taken for experts."""
    router = ExpertRouter(1, (2, 3), top_k=2)
    with torch.no_grad():
        router.weight.copy_(torch.tensor([[500.0], [0.0], [1.0], [2.0], [3.0]]))
    probs, _, expert = router(torch.ones(2, 1), torch.tensor([0, 1]))
    assert probs[0].tolist() == [1, 0, 0]
    assert expert.tolist() == [[0, 1], [4, 3]]


@every_shape
def test_the_other_groups_gradients_are_exactly_zero(make: Make, text: dict[str, Any]) -> None:
    moe = make(**text)
    groups = of_all_groups(moe)
    for group in range(moe.num_groups):
        moe.zero_grad()
        y, _ = moe(tokens(2, 7), groups, "learned")
        (y[groups == group] ** 2).sum().backward()
        for weight, ranges in moe.weights_and_group_rows():
            assert [bool(weight.grad[span.start : span.stop].any()) for span in ranges] == [
                other == group and (weight is not moe.gate.weight or moe.group_sizes[group] > 1) for other in range(moe.num_groups)
            ]
        assert moe.shared_expert.up_proj.weight.grad.any()


@every_shape
def test_groups_are_the_labels_whatever_the_routing(make: Make, text: dict[str, Any]) -> None:
    moe = make(**text)
    assert moe.router is None
    group_ids = of_all_groups(moe)
    (learned, routing), (label, _) = (moe(tokens(2, 7), group_ids, how) for how in ("learned", "label"))
    assert torch.equal(learned, label)
    assert torch.equal(routing.group, group_ids.flatten())
    with pytest.raises(ValueError, match="modality_ids"):
        moe(tokens(2, 7), None, "learned")


def test_three_groups_by_hand() -> None:
    kinds = torch.tensor([[Modality.TEXT, Modality.IMAGE_IN, Modality.IMAGE_OUT]])
    assert token_groups("type", None, kinds).tolist() == [[0, 1, 2]]
    assert token_groups("type", torch.zeros(1, 3), None) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"group_by": "image_out", "group_sizes": [3, 2]}, r"group_sizes=\[3, 2\] must part the 4 experts .* und, gen"),
        ({"group_by": "type", "group_sizes": [3, 1]}, "text, image_in, image_out"),
        ({"group_by": "type"}, "must part the 4 experts"),
        ({"group_by": "image_out", "group_sizes": [4, 0]}, "must part"),
        ({**DRAWN, "num_experts_per_tok": 2}, "from 1 to the 1 experts"),
        ({**DRAWN, "num_tasks": 1, "num_experts": 8}, "only 2 tasks can part"),
        ({**DRAWN, "lora_rank": 4, "lora_targets": ["attention"], "lora_per_task": ["attention"]}, "a 'typed_moe' knows no task"),
        ({**DRAWN, "context_router": True}, "context_router=True with ffn='typed_moe'"),
    ],
)
def test_what_cannot_be_is_said(text: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(**text)
    with pytest.raises(ValueError, match="use ffn='typed_moe'"):
        UniLlamaConfig(ffn="ta_moe", group_sizes=[3, 1])


@pytest.mark.parametrize("text", [DRAWN, ONE_SIZE], ids=str)
@torch.no_grad()
def test_saved_and_loaded(make_model: MakeModel, joint_batch: Joint, processor: Any, tmp_path: Path, text: dict[str, Any]) -> None:
    model = make_model(ffn="typed_moe", **text)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = load(str(tmp_path))[0]
    assert again.config.text_config.expert_groups == model.config.text_config.expert_groups
    for batch in joint_batch:
        assert torch.equal(again.decode_batch(batch).last_hidden_state, model.decode_batch(batch).last_hidden_state)


@pytest.mark.parametrize("text", [DRAWN, TYPES], ids=str)
@pytest.mark.parametrize("absent", list(Task))
def test_absent_tasks_hold_the_groups_that_are_theirs_alone(
    make_model: MakeModel, joint_batch: Joint, text: dict[str, Any], absent: Task
) -> None:
    """Unequal groups are held where they lie; the group of text goes on learning from the other task's text."""
    model = make_model(ffn="typed_moe", **text)
    output = model(batch=joint_batch)
    (output.loss(Task.MMU) + output.loss(Task.T2I)).backward()
    before = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    hold_absent_tasks(model, [absent])
    held = PRIVATE[text["group_by"]].get(absent)
    for number, layer in enumerate(model.decoder.layers):
        for weight, ranges in layer.mlp.weights_and_group_rows():
            name = next(name for name, other in model.named_parameters() if other is weight)
            for group, span in enumerate(ranges):
                expected = torch.zeros_like(before[name]) if group == held else before[name]
                assert torch.equal(weight.grad[span.start : span.stop], expected[span.start : span.stop]), (number, name)
    assert before["model.language_model.layers.1.mlp.experts.down_proj"].any()
