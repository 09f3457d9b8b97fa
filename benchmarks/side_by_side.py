"""A benchmark of layers: at each shape, sides that compute the same, compared and then timed; the ratios are the result."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from benchmarks.record import Result, Row
from benchmarks.timing import Ratio, Side, compare, hot_spots, measure, one_thread

REPEATS = 11


@dataclass(frozen=True)
class Shape:
    """A layer and its input: by default Janus-Pro-1B's FFN at a quarter of its width.

    Attributes:
        tokens: N, in all.
        hidden, inner: H and I.
        experts_per_group: e.
    """

    tokens: int
    hidden: int = 512
    inner: int = 1408
    experts_per_group: int = 2

    def inputs(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Tokens, and a random projection of the output: (N, H) each."""
        x, projection = torch.randn(2, self.tokens, self.hidden, generator=torch.Generator().manual_seed(seed))
        return x, projection

    @property
    def tasks(self) -> Tensor:
        """(1, N) tasks of the tokens: the first half understanding, the second generation."""
        return (torch.arange(self.tokens) * 2 // self.tokens).unsqueeze(0)


SHAPES = (Shape(512), Shape(2048))


@dataclass(frozen=True)
class SideBySide:
    """What is timed, and what is hoped for.

    Attributes:
        name: of the benchmark.
        title: of its table.
        sides: all sides at a shape, ours first.
        ours_over_other: whether a ratio is our time over the other's, or the other's over ours.
        goals: by other side and direction: the ratio to reach (at most, or at least).
    """

    name: str
    title: str
    sides: Callable[[Shape], list[Side]]
    ours_over_other: bool
    goals: Mapping[tuple[str, str], float]

    def run(self, shapes: Sequence[Shape] = SHAPES, repeats: int = REPEATS) -> Result:
        """Compare and time.

        Raises:
            SidesDifferError: a side computes something else; nothing is timed then.
            ValueError: too few repeats.
        """
        one_thread()
        rows: list[Row] = []
        details: dict[str, object] = {}
        for shape in shapes:
            x, projection = shape.inputs()
            made = self.sides(shape)
            off = compare(made, x, projection)
            times = measure(made, x, projection, repeats)
            details[f"{shape.tokens} tokens"] = {"shape": asdict(shape), "largest relative difference": off, "seconds": times}
            for direction, seconds in times.items():
                rows += [self._row(shape, direction, seconds, made[0].name, other.name) for other in made[1:]]
        return Result(self.name, self.title, {"repeats": repeats, "seed": 0, "dtype": "float32"}, rows, details)

    def command(self) -> None:
        """What ``python -m benchmarks.<name>`` does."""
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{self.name}", description=self.title)
        parser.add_argument("--repeats", type=int, default=REPEATS, help=f"turns, at least 7 (default: {REPEATS})")
        parser.add_argument("--tokens", type=int, nargs="+", help="tokens in all (default: 512 2048)")
        parser.add_argument("--profile", action="store_true", help="where each side's CPU time goes, instead of timing it")
        arguments = parser.parse_args()
        shapes = SHAPES if arguments.tokens is None else tuple(replace(SHAPES[0], tokens=n) for n in arguments.tokens)
        if not arguments.profile:
            result = self.run(shapes, arguments.repeats)
            print(f"{result.table()}\n{result.write()}")
            return
        one_thread()
        for shape in shapes:
            for side in self.sides(shape):
                print(f"{shape.tokens} tokens, {side.name}\n{hot_spots(side, *shape.inputs())}")

    def _row(self, shape: Shape, direction: str, seconds: Mapping[str, Sequence[float]], ours: str, other: str) -> Row:
        pair = (ours, other) if self.ours_over_other else (other, ours)
        ratio = Ratio.of(*(seconds[name] for name in pair))
        what = f"{shape.tokens} tokens, {direction}: {' / '.join(pair)}"
        goal = self.goals.get((other, direction))
        if goal is None:
            return Row(what, ratio.median, "x", ratio.low, ratio.high)
        met = round(ratio.median, 2) <= goal if self.ours_over_other else round(ratio.median, 2) >= goal
        text = f"{'at most' if self.ours_over_other else 'at least'} {goal:.2f}"
        return Row(what, ratio.median, "x", ratio.low, ratio.high, text, met)
