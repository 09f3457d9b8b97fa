"""Merging by hand on numbers, and AdaMerging's coefficients against a search over all of them."""

from __future__ import annotations

import copy
import math
import typing
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from conftest import MakeModel
from unidecouple.batch import Batch
from unidecouple.methods.merging import MERGINGS, AdaMerging, Merging, TaskArithmetic
from unidecouple.methods.merging.adamerging import prediction_entropy
from unidecouple.methods.merging.task_arithmetic import merged

Joint = tuple[Batch, Batch]


def test_every_member_of_the_union_is_listed() -> None:
    assert set(MERGINGS) == set(typing.get_args(Merging))
    assert [member().kind for member in MERGINGS] == ["task_arithmetic", "adamerging"]


def test_task_arithmetic_by_hand() -> None:
    base = {"w": torch.tensor([1.0, 2.0]), "count": torch.tensor([7])}
    tuned = [
        {"w": torch.tensor([2.0, 2.0]), "count": torch.tensor([8])},
        {"w": torch.tensor([1.0, -2.0]), "count": torch.tensor([7])},
    ]
    out = merged(base, tuned, TaskArithmetic(scale=0.5).coefficients(2))
    assert out["w"].tolist() == [1.5, 0.0]
    assert out["count"].tolist() == [7]
    by_name = merged(base, tuned, lambda name: {"w": [1.0, 0.25]}.get(name, [0.0, 0.0]))
    assert by_name["w"].tolist() == [2.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ends_of_the_scale(dtype: torch.dtype) -> None:
    """Nothing of any model is the base, all of one is that model, and what no model moved keeps every bit."""
    torch.manual_seed(0)
    base, one = ({name: torch.randn(5).to(dtype) for name in ("a", "b")} for _ in range(2))
    one["b"] = base["b"].clone()
    assert all(torch.equal(w, base[n]) for n, w in merged(base, [one], TaskArithmetic(scale=0.0).coefficients(1)).items())
    assert all(torch.equal(w, one[n]) for n, w in merged(base, [one], TaskArithmetic(scale=1.0).coefficients(1)).items())
    assert torch.equal(merged(base, [one, one], TaskArithmetic(scale=0.1).coefficients(2))["b"], base["b"])


def moved(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Weights of a "tuned" model: attention of layer 0 and the norms moved."""
    torch.manual_seed(seed)
    return {
        name: weight + (0.3 * torch.randn_like(weight) if "layers.0.self_attn" in name or name.endswith("norm.weight") else 0)
        for name, weight in copy.deepcopy(model.state_dict()).items()
    }


def test_entropy_of_certain_and_of_uniform_predictions(make_model: MakeModel, joint_batch: Joint) -> None:
    """Uniform over words and over image tokens: the logarithms of their numbers, one a task."""
    model = make_model()
    with torch.no_grad():
        for head in (model.lm_head, model.model.generation_head.vision_head):
            for parameter in head.parameters():
                parameter.zero_()
    words, codes = model.lm_head.out_features, model.model.generation_head.vision_head.out_features
    assert prediction_entropy(model, joint_batch).item() == pytest.approx(math.log(words) + math.log(codes), rel=1e-5)
    assert prediction_entropy(model, joint_batch[:1]).item() == pytest.approx(math.log(words), rel=1e-5)
    with torch.no_grad():
        model.lm_head.weight.copy_(make_model().lm_head.weight * 1e4)
    assert prediction_entropy(model, joint_batch[:1]).item() == pytest.approx(0, abs=0.05)


def test_coefficients_follow_the_gradient_of_the_entropy(make_model: MakeModel, joint_batch: Joint) -> None:
    """Adam's first step moves each by the learning rate against the sign of a difference quotient; clamping holds the bounds."""
    model = make_model()
    tuned = [moved(model, 1), moved(model, 2)]
    name = "model.language_model.layers.0.self_attn.v_proj.weight"
    found = AdaMerging(learning_rate=1e-3).learn(copy.deepcopy(model), tuned, [joint_batch], lambda step, entropy: None)

    def entropy(of: int, factor: float) -> float:
        at = copy.deepcopy(model)
        mixed = merged(model.state_dict(), tuned, lambda n: [factor if (n, k) == (name, of) else 0.3 for k in range(2)])
        at.load_state_dict(mixed)
        return prediction_entropy(at, joint_batch).item()

    for of in range(2):
        slope = entropy(of, 0.31) - entropy(of, 0.29)
        assert abs(slope) > 1e-5
        assert found(name)[of] == pytest.approx(0.3 - math.copysign(1e-3, slope), abs=1e-5)
    assert found("lm_head.weight") == [0.0, 0.0]
    bounded = AdaMerging(start=0.0, learning_rate=5.0).learn(copy.deepcopy(model), tuned, [joint_batch], lambda step, entropy: None)
    assert set(bounded(name)) <= {0.0, 1.0}


def test_learning_lowers_the_entropy_and_leaves_the_model_merged(make_model: MakeModel, joint_batch: Joint) -> None:
    model, entropies = make_model(), []
    tuned, base = [moved(model, 1), moved(model, 2)], copy.deepcopy(model.state_dict())
    found = AdaMerging(learning_rate=0.05).learn(model, tuned, [joint_batch] * 12, lambda step, entropy: entropies.append(entropy))
    assert entropies[-1] < entropies[0] - 0.01
    for name, weight in merged(base, tuned, found).items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (lambda: TaskArithmetic(scale=math.nan), "scale=nan must be a finite number"),
        (lambda: AdaMerging(start=1.5), "start=1.5 must be from 0 to 1"),
        (lambda: AdaMerging(learning_rate=0), "learning_rate=0 must be above 0"),
        (lambda: AdaMerging(steps=-3), "steps=-3 must be at least 1"),
        (lambda: AdaMerging(batch_size=0), "batch_size=0 must be at least 1"),
    ],
)
def test_settings_that_teach_nothing_are_refused(method: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        method()
    TaskArithmetic(scale=-1)  # negation
