"""Merging by hand on numbers, and AdaMerging's coefficients against a search over all of them."""

from __future__ import annotations

import copy
import math
import typing
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import MakeModel
from unidecouple.batch import Batch
from unidecouple.methods.merging import ESM, MERGINGS, TSVM, AdaMerging, Concrete, Doge, Merging, TaskArithmetic, Ties
from unidecouple.methods.merging.adamerging import changes, prediction_entropy
from unidecouple.methods.merging.concrete import _Masked
from unidecouple.methods.merging.esm import merge_layer
from unidecouple.methods.merging.rule import linear, merged

Joint = tuple[Batch, Batch]


def test_every_member_of_the_union_is_listed() -> None:
    assert set(MERGINGS) == set(typing.get_args(Merging))
    assert [member().kind for member in MERGINGS] == ["task_arithmetic", "adamerging", "ties", "tsv_m", "doge", "concrete", "esm"]


def test_task_arithmetic_by_hand() -> None:
    base = {"w": torch.tensor([1.0, 2.0]), "count": torch.tensor([7])}
    tuned = [
        {"w": torch.tensor([2.0, 2.0]), "count": torch.tensor([8])},
        {"w": torch.tensor([1.0, -2.0]), "count": torch.tensor([7])},
    ]
    out = merged(base, tuned, TaskArithmetic().rule(0.5))
    assert out["w"].tolist() == [1.5, 0.0]
    assert out["count"].tolist() == [7]
    by_name = merged(base, tuned, linear(lambda name: {"w": [1.0, 0.25]}.get(name, [0.0, 0.0])))
    assert by_name["w"].tolist() == [2.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ends_of_the_scale(dtype: torch.dtype) -> None:
    """Nothing of any model is the base, all of one is that model, and what no model moved keeps every bit."""
    torch.manual_seed(0)
    base, one = ({name: torch.randn(5).to(dtype) for name in ("a", "b")} for _ in range(2))
    one["b"] = base["b"].clone()
    assert all(torch.equal(w, base[n]) for n, w in merged(base, [one], TaskArithmetic().rule(0.0)).items())
    assert all(torch.equal(w, one[n]) for n, w in merged(base, [one], TaskArithmetic().rule(1.0)).items())
    assert torch.equal(merged(base, [one, one], TaskArithmetic().rule(0.1))["b"], base["b"])


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
        mixed = merged(model.state_dict(), tuned, linear(lambda n: [factor if (n, k) == (name, of) else 0.3 for k in range(2)]))
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
    for name, weight in merged(base, tuned, linear(found)).items():
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


RULES = {
    "task_arithmetic": TaskArithmetic().rule(0.5),
    "ties": Ties().rule(1.0),
    "tsv_m": TSVM().rule(1.0),
    "doge": Doge(steps=5).rule(0.07),
}
SIZES = ((12, 18), (18, 12), (7,))


def pair_of_changes(size: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", RULES)
def test_merging_does_not_depend_on_the_order_of_models(name: str, size: tuple[int, ...]) -> None:
    one, two = pair_of_changes(size)
    torch.testing.assert_close(RULES[name]("w", [one, two]), RULES[name]("w", [two, one]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in RULES if name != "task_arithmetic"])
def test_what_one_model_alone_changed_is_that_model_s(name: str) -> None:
    one, _ = pair_of_changes((6, 4))
    assert torch.equal(RULES[name]("w", [torch.zeros_like(one), one]), one)


def test_ties_by_hand() -> None:
    """Half of four entries is kept; where signs disagree, the larger sum wins, and what agrees is averaged."""
    one, two = torch.tensor([4.0, -3.0, 0.5, 0.1]).double(), torch.tensor([2.0, 5.0, 0.2, 0.3]).double()
    assert Ties(density=0.5).rule(1.0)("w", [one, two]).tolist() == [3.0, 5.0, 0.0, 0.0]
    assert Ties(density=0.5).rule(2.0)("w", [one, two]).tolist() == [6.0, 10.0, 0.0, 0.0]
    assert Ties(density=1.0).rule(1.0)("w", [one, two]).tolist() == pytest.approx([3.0, 5.0, 0.35, 0.2])


def test_tsv_m_keeps_half_of_each_and_makes_them_orthogonal() -> None:
    """Of models with orthogonal vectors the sum of their top halves; of others as numpy has it, by its own Procrustes solution."""
    left, right = (torch.linalg.qr(torch.randn(n, 4, dtype=torch.float64)).Q for n in (6, 5))
    values = [torch.tensor([4.0, 2.0]).double(), torch.tensor([3.0, 1.0]).double()]
    one, two = (left[:, 2 * n : 2 * n + 2] * values[n] @ right[:, 2 * n : 2 * n + 2].T for n in range(2))
    torch.testing.assert_close(TSVM().rule(0.5)("w", [one, two]), 0.5 * (one + two))
    one, two = pair_of_changes((8, 5))
    parts = [np.linalg.svd(tau.numpy(), full_matrices=False) for tau in (one, two)]
    u, v = np.hstack([p[0][:, :2] for p in parts]), np.vstack([p[2][:2] for p in parts])
    middle = np.diag(np.concatenate([p[1][:2] for p in parts]))

    def polar(matrix: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(matrix.T @ matrix)
        return matrix @ (vectors / np.sqrt(values)) @ vectors.T

    expected = polar(u) @ middle @ polar(v.T).T
    np.testing.assert_allclose(TSVM().rule(1.0)("w", [one, two]).numpy(), expected, atol=1e-9)


def test_doge_equalises_norms_and_lowers_its_loss() -> None:
    """Without steps: the largest entries of each change, over its norm. Steps move off the shared directions alone."""
    one, two = pair_of_changes((12, 18))
    masks = [tau.abs() >= tau.abs().flatten().sort().values[-int(0.3 * tau.numel())] for tau in (one, two)]
    expected = sum(0.07 * mask * tau / tau.norm() for mask, tau in zip(masks, (one, two), strict=True))
    torch.testing.assert_close(Doge(steps=0).rule(0.07)("w", [one, two]), expected)
    torch.testing.assert_close(Doge(steps=0).rule(0.07)("w", [100 * one, two]), expected)
    tau, method = torch.stack([one, two]), Doge(steps=100, learning_rate=1e-2)
    factors = (0.07 / torch.stack([one.norm(), two.norm()])).view(-1, 1, 1)
    shift = method._shift(tau, factors)
    losses = [(tau * (tau - (factors * (tau + d)).sum(0))).sum(-1).square().sum() for d in (torch.zeros_like(one), shift)]
    assert losses[1] < losses[0]
    tops = torch.cat([torch.linalg.svd(t)[0][:, :6] for t in tau], 1)
    shared = torch.linalg.svd(tops)[0][:, :2]
    first = Doge(steps=1, learning_rate=1.0)._shift(tau, factors)
    slope = torch.autograd.functional.jacobian(
        lambda d: (tau * (tau - (factors * (tau + d)).sum(0))).sum(-1).square().sum(), torch.zeros_like(one)
    )
    assert torch.equal(first.sign(), -(slope - shared @ shared.T @ slope).sign()), "Adam's first step is the sign of the slope"


def test_esm_of_one_direction_each() -> None:
    """Two models whose changes are of rank one, orthogonal on both sides, with white inputs: each keeps its direction."""
    left, right = torch.eye(4, dtype=torch.float64), torch.eye(6, dtype=torch.float64)
    one, two = torch.outer(left[0], right[0]), torch.outer(left[1], right[1])
    found = merge_layer([one, two], [torch.eye(6, dtype=torch.float64)] * 2, 0.15)
    torch.testing.assert_close(found / found[0, 0], one + two)
    larger = merge_layer([3 * one, two], [torch.eye(6, dtype=torch.float64)] * 2, 0.15)
    torch.testing.assert_close(larger / larger[0, 0], one + two)  # the orthonormal parts have one size
    blind = torch.diag(torch.tensor([1.0, 0, 0, 0, 0, 0]).double())
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    seen = merge_layer([wide, two], [blind, torch.eye(6, dtype=torch.float64)], 0.15)
    direction = wide[:, 0] / wide[:, 0].norm()  # the one output direction that the inputs reach
    basis = torch.linalg.qr(torch.stack([direction, left[1]], 1)).Q
    torch.testing.assert_close(basis @ basis.T @ seen, seen)


def test_esm_collects_what_its_layers_read(make_model: MakeModel, joint_batch: Joint) -> None:
    model = make_model()
    tuned, before = [moved(model, 1), moved(model, 2)], copy.deepcopy(model.state_dict())
    rule = ESM(samples=1).learn(model, tuned, [[joint_batch[:1]], [joint_batch[1:]]])
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    name = "model.language_model.layers.0.self_attn.v_proj.weight"
    changes = [state[name].double() - before[name].double() for state in tuned]
    assert torch.linalg.matrix_rank(rule(1.0)(name, changes)) > 1
    torch.testing.assert_close(rule(2.0)(name, changes), 2 * rule(1.0)(name, changes))
    norm = "model.language_model.norm.weight"
    torch.testing.assert_close(rule(1.0)(norm, [torch.ones(3), torch.zeros(3)]), torch.ones(3))
    torch.testing.assert_close(rule(7.0)(norm, [torch.ones(3), 2 * torch.ones(3)]), 1.5 * torch.ones(3))


@pytest.mark.parametrize("inner", [0, 2])
def test_a_concrete_mask_lowers_the_entropy(inner: int, make_model: MakeModel, joint_batch: Joint) -> None:
    model, entropies = make_model(), []
    tuned, base = [moved(model, 1), moved(model, 2)], copy.deepcopy(model.state_dict())
    method = Concrete(learning_rate=0.3, inner_rate=0.01, steps=10, adamerging_steps=inner)
    batches = [joint_batch] * method.batches
    rule = method.learn(model, tuned, batches, lambda step, entropy: entropies.append(entropy))
    assert len(entropies) == 10 + inner
    assert sum(entropies[7:10]) < sum(entropies[:3])
    name = "model.language_model.layers.0.self_attn.v_proj.weight"
    changes = [state[name].double() - base[name].double() for state in tuned]
    found = rule(name, changes)
    assert inner or float((found / (0.3 * sum(changes))).mean()) == pytest.approx(1, abs=1e-4), "the mask's mean is 1"


def test_the_mask_follows_the_gradient_of_the_entropy(make_model: MakeModel, joint_batch: Joint) -> None:
    """Adam's first step moves each logit by the rate against the entropy's slope along it, by difference quotients."""
    model = make_model()
    tuned = [moved(model, 1), moved(model, 2)]
    base, vectors = changes(model, tuned)
    learned = _Masked(Concrete(), model, base, vectors)
    noise = {name: torch.full_like(taus[0], 0.4) for name, taus in vectors.items()}
    name = "model.language_model.layers.0.self_attn.v_proj.weight"
    learned.outer_step(noise, joint_batch)
    place = int(learned.logits[name].grad.abs().argmax())
    slope = float(learned.logits[name].grad.flatten()[place])

    def entropy(logit: float) -> float:
        with torch.no_grad():
            for one in learned.logits.values():
                one.zero_()
            learned.logits[name].view(-1)[place] = logit
        return learned._slopes(noise, joint_batch)[0]

    assert slope == pytest.approx((entropy(0.5) - entropy(-0.5)), rel=0.1, abs=2e-6)
