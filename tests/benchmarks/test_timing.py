"""The harness: sides that differ are not timed, ratios are those of medians, turns alternate."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from benchmarks import timing
from benchmarks.timing import Ratio, Side, SidesDifferError, compare, interleave, measure

X, PROJECTION = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))


def side(name: str, factor: float = 1.0, slope: float = 1.0) -> Side:
    """y = factor W x; ``slope`` is an error of its gradient alone."""
    layer = nn.Linear(3, 3, bias=False)
    nn.init.constant_(layer.weight, 0.5)
    return Side(name, lambda x: factor * layer(x), layer, lambda into: {"input": into, "weight": slope * gradient(layer)})


def gradient(layer: nn.Linear) -> Tensor:
    assert layer.weight.grad is not None
    return layer.weight.grad


def test_a_ratio_by_hand() -> None:
    assert Ratio.of([4.0, 2.0, 9.0], [2.0, 2.0, 3.0]) == Ratio(2.0, 1.0, 3.0)  # medians 4 and 2; turns 2, 1, 3


def test_equal_sides_pass_and_leave_no_gradient() -> None:
    sides = [side("one"), side("two")]
    assert compare(sides, X, PROJECTION) == 0.0
    assert all(weight.grad is None for one in sides for weight in one.module.parameters())


@pytest.mark.parametrize(
    ("wrong", "what"),
    [(side("b", factor=1.001), "output"), (side("b", slope=1.001), "weight"), (side("b", factor=float("nan")), "output")],
)
def test_sides_that_differ_are_refused(wrong: Side, what: str) -> None:
    with pytest.raises(SidesDifferError, match=f"{what} of b is off a's"):
        compare([side("a"), wrong], X, PROJECTION)


def test_a_missing_gradient_is_refused() -> None:
    whole = side("a")
    part = Side("b", whole.forward, whole.module, lambda into: {"input": into})
    with pytest.raises(SidesDifferError, match=r"b has \['input', 'output'\], but a has \['input', 'output', 'weight'\]"):
        compare([whole, part], X, PROJECTION)


def test_sides_take_turns_and_the_first_turn_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(timing.time, "process_time", lambda: float(next(clock)))
    order: list[str] = []

    def slow() -> None:
        order.append("slow")
        next(clock)

    times = interleave({"fast": lambda: order.append("fast"), "slow": slow}, 7, lambda: order.append("|"))
    assert order == ["|", "fast", "|", "slow"] * 8
    assert times == {"fast": [1.0] * 7, "slow": [2.0] * 7}


def test_too_few_repeats_are_refused() -> None:
    with pytest.raises(ValueError, match="repeats=6 is too few for a median and its spread: take at least 7"):
        interleave({}, 6, lambda: None)


def test_both_directions_are_timed_without_gradients_piling_up() -> None:
    one = side("one")
    times = measure([one], X, PROJECTION, 7)
    assert {direction: len(seconds["one"]) for direction, seconds in times.items()} == {"fwd": 7, "fwd+bwd": 7}
    once = side("one").step(X, PROJECTION)
    assert torch.equal(one.step(X, PROJECTION)["input"], once["input"])
