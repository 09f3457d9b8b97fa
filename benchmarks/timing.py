"""Two or more ways to compute the same thing, timed side by side in one process: compared first, then taken in turn.

Times are CPU seconds of this process (``time.process_time``) on one thread, not wall seconds: other programs on the machine may
stop it, but do not count. What they still take is shared cache and memory bandwidth, hence the turns and the spread.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

LEAST_REPEATS = 7
BACKWARD = "fwd+bwd"
DIRECTIONS = ("fwd", BACKWARD)


class SidesDifferError(AssertionError):
    """Two sides do not compute the same, so their times say nothing about one another."""


@dataclass(frozen=True)
class Side:
    """One way to compute.

    Attributes:
        name: in tables and results.
        forward: (N, H) -> (N, H).
        module: whose gradients ``forward`` makes.
        gradients: given the input's gradient, after a backward pass: the gradients that all sides have, by names that they share.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    module: nn.Module
    gradients: Callable[[Tensor], dict[str, Tensor]]

    def step(self, x: Tensor, projection: Tensor) -> dict[str, Tensor]:
        """Forward and backward of the random ``projection`` (N, H) of the output; that output, and the input's gradient."""
        into = x.detach().requires_grad_()
        y = self.forward(into)
        (y * projection).sum().backward()
        assert into.grad is not None
        return {"output": y.detach(), "input": into.grad}


@dataclass(frozen=True)
class Ratio:
    """How much longer one side takes than another.

    Attributes:
        median: of the first side's times over the median of the second's.
        low, high: least and greatest ratio of the two times of one turn.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float]) -> Ratio:
        """Of two sides' times, turn by turn."""
        each = [a / b for a, b in zip(first, second, strict=True)]
        return cls(statistics.median(first) / statistics.median(second), min(each), max(each))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def one_thread() -> None:
    """Compute on one thread from here on."""
    torch.set_num_threads(1)


def compare(sides: Sequence[Side], x: Tensor, projection: Tensor, tolerance: float = 1e-4) -> float:
    """The largest difference of any side to the first, in outputs and shared gradients, relative to the first's largest entry.

    Raises:
        SidesDifferError: it is above ``tolerance``, or a side lacks a gradient.
    """
    found = []
    for side in sides:
        side.module.zero_grad(set_to_none=True)
        done = side.step(x, projection)
        found.append({"output": done["output"]} | {name: g.clone() for name, g in side.gradients(done["input"]).items()})
        side.module.zero_grad(set_to_none=True)
    worst = 0.0
    for side, values in zip(sides[1:], found[1:], strict=True):
        if values.keys() != found[0].keys():
            raise SidesDifferError(f"{side.name} has {sorted(values)}, but {sides[0].name} has {sorted(found[0])}")
        for name, wanted in found[0].items():
            difference = float((values[name] - wanted).abs().max() / wanted.abs().max())
            if not difference <= tolerance:  # NaN too
                raise SidesDifferError(f"{name} of {side.name} is off {sides[0].name}'s by {difference:.1e}: nothing was timed")
            worst = max(worst, difference)
    return worst


def interleave(calls: Mapping[str, Callable[[], object]], repeats: int, between: Callable[[], object]) -> dict[str, list[float]]:
    """CPU seconds of each call, ``repeats`` times, one after the other in turn, after a first time that does not count.

    Args:
        calls: what to time, by name.
        repeats: turns, at least 7.
        between: called before each call, not timed.

    Raises:
        ValueError: too few repeats.
    """
    if repeats < LEAST_REPEATS:
        raise ValueError(f"repeats={repeats} is too few for a median and its spread: take at least {LEAST_REPEATS}")
    times: dict[str, list[float]] = {name: [] for name in calls}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(repeats + 1):
            for name, call in calls.items():
                between()
                start = time.process_time()
                call()
                if turn:
                    times[name].append(time.process_time() - start)
    finally:
        if collecting:
            gc.enable()
    return times


def measure(sides: Sequence[Side], x: Tensor, projection: Tensor, repeats: int) -> dict[str, dict[str, list[float]]]:
    """``interleave`` of ``sides``: times by direction ("fwd" without a graph, "fwd+bwd") and side."""

    def clear() -> None:
        for side in sides:
            side.module.zero_grad(set_to_none=True)

    def forward(side: Side) -> None:
        with torch.no_grad():
            side.forward(x)

    alone = {side.name: lambda side=side: forward(side) for side in sides}
    both = {side.name: lambda side=side: side.step(x, projection) for side in sides}
    return {"fwd": interleave(alone, repeats, clear), BACKWARD: interleave(both, repeats, clear)}


def hot_spots(side: Side, x: Tensor, projection: Tensor, rows: int = 16) -> str:
    """Which operators a side's forward and backward pass spend their CPU time in."""
    side.step(x, projection)
    side.module.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU]) as taken:
        side.step(x, projection)
    return taken.key_averages().table(sort_by="self_cpu_time_total", row_limit=rows, max_name_column_width=40)
