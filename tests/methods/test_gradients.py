"""Gradient strategies: two-dimensional cases by hand, properties over the union, TorchJD beside them."""

from __future__ import annotations

import importlib.util
import typing
from pathlib import Path

import pytest
import torch
import torchjd.aggregation as torchjd
from scipy.optimize import minimize_scalar
from torch import Tensor

from unidecouple import config as configs
from unidecouple.methods.gradient import GRADIENTS, MAOP, MGDA, CAGrad, Gradient, PCGrad, Sum, TorchJDAggregator
from unidecouple.methods.gradient.aggregation import draws, gramian
from unidecouple.run import RunConfig

UPGRAD = TorchJDAggregator(name="UPGrad")
SURGERY = (PCGrad(), MGDA(), CAGrad(), UPGRAD)
ALL = (
    Sum(),
    *SURGERY,
    MAOP(),
    MAOP(of="t2i"),
    TorchJDAggregator(name="GradDrop"),
    TorchJDAggregator(name="FairGrad", settings={"alpha": 1.0}),
)


def name(strategy: Gradient) -> str:
    return strategy.name if isinstance(strategy, TorchJDAggregator) else strategy.kind


def combined(
    strategy: Gradient, mmu: Tensor, t2i: Tensor, momentum: Tensor | None = None, draw: tuple[int, int] = (0, 0)
) -> Tensor:
    """The direction of two gradient vectors, each given as two weights: a matrix and what is left over."""

    def weights(vector: Tensor) -> list[Tensor]:
        cut = 2 * (len(vector) // 4)
        return [vector[:cut].clone().view(2, -1), vector[cut:].clone()]

    tasks = {"mmu": mmu, "t2i": t2i} if strategy.by_task else {"total": mmu + t2i}
    momenta = [None, None] if momentum is None else weights(momentum)
    with draws(*draw, mmu.device):
        parts = strategy.combine({task: weights(vector) for task, vector in tasks.items()}, momenta)
    return torch.cat([part.flatten() for part in parts])


def pair(seed: int, conflict: bool, size: int = 11) -> tuple[Tensor, Tensor]:
    """Two gradients of different lengths, double precision; in conflict, their sum opposes the first."""
    one, two = torch.randn(2, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).unbind()
    part = -2.0 if conflict else 0.5
    return one, 3 * two + (part - 3 * torch.dot(one, two) / torch.dot(one, one)) * one


def test_every_member_is_tried() -> None:
    assert {type(strategy) for strategy in ALL} == set(GRADIENTS) == set(typing.get_args(Gradient))
    assert len({strategy.kind for strategy in ALL}) == len(GRADIENTS)


@pytest.mark.parametrize(
    ("strategy", "direction"),
    [(Sum(), (0, 1)), (PCGrad(), (0.5, 1.5)), (MGDA(), (0.4, 0.8)), (UPGRAD, (0.5, 1.5)), (CAGrad(c=0), (0, 1))],
    ids=lambda value: value.kind if isinstance(value, GRADIENTS) else "",
)
def test_by_hand(strategy: Gradient, direction: tuple[float, float]) -> None:
    """g_1 = (1, 0), g_2 = (-1, 1). Without the other's part: (.5, .5) and (0, 1). The hull comes nearest to 0 at (.2, .4)."""
    found = combined(strategy, torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([-1.0, 1.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx(direction, abs=1e-3)


def test_mgda_at_an_end_of_the_hull() -> None:
    """gamma is clipped: the shorter of two that point the same way."""
    assert combined(MGDA(), torch.tensor([3.0, 1.0]), torch.tensor([1.0, 0.0])).tolist() == pytest.approx([2, 0])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("c", [0.2, 0.5])
def test_cagrad_is_the_published_problem(seed: int, c: float) -> None:
    """The paper's dual for two tasks, one variable: ``min_w g_w·g_0 + c |g_0| |g_w|``; ``d = g_0 + c |g_0| g_w / |g_w|``."""
    one, two = pair(seed, conflict=seed % 2 == 0)
    mean = (one + two) / 2

    def dual(w: float) -> float:
        mixed = w * one + (1 - w) * two
        return (mixed @ mean + c * mean.norm() * mixed.norm()).item()

    best = minimize_scalar(dual, bounds=(0, 1), method="bounded", options={"xatol": 1e-10}).x
    mixed = best * one + (1 - best) * two
    expected = 2 * (mean + c * mean.norm() * mixed / mixed.norm())
    torch.testing.assert_close(combined(CAGrad(c=c), one, two), expected, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("strategy", SURGERY, ids=name)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("conflict", [True, False])
def test_surgery_opposes_no_task(strategy: Gradient, seed: int, conflict: bool) -> None:
    one, two = pair(seed, conflict)
    found = combined(strategy, one, two)
    for gradient in (one, two):
        assert (found @ gradient).item() >= -1e-3 * gradient.norm().item() ** 2
    assert (torch.dot(one + two, one) < 0) == conflict, "the sum has not this property"


@pytest.mark.parametrize("strategy", [Sum(), PCGrad(), UPGRAD, MAOP(), MAOP(of="t2i")], ids=name)
def test_gradients_that_agree_are_summed(strategy: Gradient) -> None:
    one, two = pair(1, conflict=False)
    torch.testing.assert_close(combined(strategy, one, two, momentum=one + two), one + two)


@pytest.mark.parametrize("strategy", [s for s in ALL if s != MAOP(of="t2i")], ids=name)
def test_the_order_of_tasks_does_not_matter(strategy: Gradient) -> None:
    for seed in range(3):
        one, two = pair(seed, conflict=True)
        forth, back = combined(strategy, one, two, -one), combined(strategy, two, one, -one)
        torch.testing.assert_close(forth, back, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", ALL, ids=name)
def test_direction_scales_with_the_gradients(strategy: Gradient) -> None:
    if name(strategy) == "FairGrad":
        pytest.skip("FairGrad's direction does not grow with the gradients, by its definition")
    one, two = pair(2, conflict=True)
    torch.testing.assert_close(
        combined(strategy, 5 * one, 5 * two, one), 5 * combined(strategy, one, two, one), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("strategy", ALL, ids=name)
def test_a_task_alone_is_left_as_it_is(strategy: Gradient) -> None:
    row = [torch.tensor([[1.0, -2.0]]), torch.tensor([3.0])]
    found = strategy.combine({"t2i" if strategy.by_task else "total": [g.clone() for g in row]}, [None, None])
    assert all(map(torch.equal, found, row))


@pytest.mark.parametrize("other", ["MGDA", "PCGrad", "UPGrad", "AlignedMTL", "IMTLG", "DualProj", "ConFIG", "Mean", "Sum"])
def test_equals_torchjd_on_its_matrix(other: str) -> None:
    """On inner products, in parts, as TorchJD's on the whole matrix."""
    for seed in range(3):
        one, two = pair(seed, conflict=seed % 2 == 0)
        expected = getattr(torchjd, other)()(torch.stack([one, two]))
        torch.testing.assert_close(combined(TorchJDAggregator(name=other, scale=1.0), one, two), expected, rtol=1e-5, atol=1e-6)


def test_cagrad_and_mgda_equal_torchjd_times_the_tasks() -> None:
    one, two = pair(0, conflict=True)
    matrix = torch.stack([one, two])
    torch.testing.assert_close(combined(CAGrad(c=0.4), one, two), 2 * torchjd.CAGrad(c=0.4)(matrix), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(combined(MGDA(), one, two), 2 * torchjd.MGDA()(matrix))


@pytest.mark.parametrize("other", ["Random", "GradDrop"])
def test_draws_are_a_function_of_seed_and_step(other: str) -> None:
    """A resumed run draws what the unbroken one drew, whatever was drawn in between and however sums were rounded."""
    torch.manual_seed(0)
    drawn, (one, two) = TorchJDAggregator(name=other), pair(0, conflict=True, size=101)
    first, left = combined(drawn, one, two), torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), left), "the run's own generator is not moved"
    assert torch.equal(combined(drawn, one, two), first)
    torch.testing.assert_close(combined(drawn, one * (1 + 1e-9), two), first, rtol=1e-6, atol=1e-6)
    for draw in ((0, 1), (1, 0)):
        assert not torch.allclose(combined(drawn, one, two, draw=draw), first, atol=1e-2)


@pytest.mark.parametrize("strategy", [s for s in ALL if s.by_task], ids=name)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(strategy: Gradient, bad: float) -> None:
    """No solver fails on it in a way of its own: the step sees it and stops."""
    assert not combined(strategy, torch.tensor([1.0, bad]), torch.tensor([1.0, 1.0])).isfinite().all()


@pytest.mark.parametrize(
    ("other", "settings"),
    [
        ("UPGrad", {"pref_vector": [1.0, 2.0]}),
        ("AlignedMTL", {"scale_mode": "median"}),
        ("ConFIG", {"pref_vector": [1.0, 3.0]}),
        ("Constant", {"weights": [1.0, 3.0]}),
        ("TrimmedMean", {"trim_number": 0}),
        ("MGDA", {"max_iters": 5}),
        ("GradDrop", {"leak": [1.0, 1.0]}),
    ],
)
def test_settings_of_every_type(other: str, settings: dict[str, typing.Any], tmp_path: Path) -> None:
    """As a recipe writes them, whole numbers whole; lists are TorchJD's tensors, of single or double precision as it needs."""
    chosen = f"{{kind: torchjd, name: {other}, settings: {settings}, scale: 1.0}}"
    (tmp_path / "run.yaml").write_text(f"stages: [{{gradient: {chosen}}}]")
    strategy = configs.load(RunConfig, [tmp_path / "run.yaml"]).stages[0].gradient
    assert isinstance(strategy, TorchJDAggregator)
    assert repr(strategy.settings) == repr(settings)
    tensors = {key: torch.tensor(value) if isinstance(value, list) else value for key, value in settings.items()}
    one, two = (vector.float() for vector in pair(0, conflict=True))
    expected = getattr(torchjd, other)(**tensors)(torch.stack([one, two]))
    torch.testing.assert_close(combined(strategy, one, two), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("other", "settings", "message"),
    [
        ("TrimmedMean", {"trim_number": 0.0}, r"TypeError: narrow\(\)"),
        ("Krum", {"n_byzantine": 0}, "ValueError: .* at least 3 rows"),
        ("Constant", {"weights": [1.0, 2.0, 3.0]}, "should have 3 rows"),
        ("AlignedMTL", {"scale_mode": "middle"}, "Invalid scale_mode='middle'"),
        ("GradDrop", {"f": "abs"}, "'str' object is not callable"),
    ],
)
def test_settings_that_cannot_combine_two_tasks(other: str, settings: dict[str, typing.Any], message: str) -> None:
    """Refused where they are given, not in the first step; and the run's own generator is not moved."""
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=rf"{other} with the settings .* two tasks \(.*{message}.*: give the settings as TorchJD"):
        TorchJDAggregator(name=other, settings=settings)
    TorchJDAggregator(name="GradDrop")
    assert torch.equal(torch.get_rng_state(), before)


def test_gramian_by_hand() -> None:
    rows = [[torch.tensor([[1.0, 2.0]]), torch.tensor([3.0])], [torch.tensor([[0.0, 1.0]]), torch.tensor([-1.0])]]
    assert gramian(rows).tolist() == [[14.0, -1.0], [-1.0, 2.0]]


@pytest.mark.parametrize("of", ["total", "t2i"])
def test_maop_by_hand(of: typing.Literal["total", "t2i"]) -> None:
    """A matrix that points against its moment loses that part; a vector that does not keeps all, as do weights without moment."""
    strategy = MAOP(of=of)
    tasks = {"total": [torch.tensor([1.0, -2.0]), torch.tensor([4.0])]}
    if of == "t2i":
        tasks = {"mmu": [torch.tensor([5.0, -5.0]), torch.tensor([1.0])], "t2i": tasks["total"]}
    found = strategy.combine(tasks, [torch.tensor([0.0, 3.0]), torch.tensor([2.0])])
    assert torch.cat(found).tolist() == pytest.approx([6.0, -5.0, 5.0] if of == "t2i" else [1.0, 0.0, 4.0])
    untouched = strategy.combine({"t2i": [torch.tensor([1.0, -2.0])]}, [None])
    assert untouched[0].tolist() == [1.0, -2.0]


def test_maop_of_generation_leaves_understanding_alone() -> None:
    found = MAOP(of="t2i").combine({"mmu": [torch.tensor([-1.0])]}, [torch.tensor([1.0])])
    assert found[0].tolist() == [-1.0]


def test_unknown_and_unfit_names() -> None:
    with pytest.raises(ValueError, match=r"'UpGrad' is none of TorchJD's; choose from its stateless aggregators: .*UPGrad"):
        TorchJDAggregator(name="UpGrad")
    with pytest.raises(ValueError, match=r"'NashMTL' keeps a memory between steps"):
        TorchJDAggregator(name="NashMTL")
    with pytest.raises(ValueError, match=r"FairGrad does not take the settings \{\}.*alpha"):
        TorchJDAggregator(name="FairGrad")
    with pytest.raises(ValueError, match=r"c=-1\.0 must be at least 0"):
        CAGrad(c=-1.0)


def test_a_solver_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "torchjd._mixins.find_spec", lambda package: None if package == "cvxpy" else importlib.util.find_spec(package)
    )
    with pytest.raises(ValueError, match=r"the solver of CAGrad needs.*cvxpy.*pip install 'cvxpy>="):
        CAGrad()
