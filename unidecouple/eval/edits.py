"""Edits: an image generated from a source image and an instruction. The synthetic benchmark has them with exact answers."""

from __future__ import annotations

from typing import Final, NoReturn

from unidecouple.eval.benchmark import Metric
from unidecouple.eval.suite import Benchmark, BenchmarkOptions


def _open(options: BenchmarkOptions) -> NoReturn:
    raise ValueError(
        "edits exist on the synthetic benchmark only, since no judge of photographs comes with the package: leave out --data"
    )


BENCHMARK: Final = Benchmark("edits", (Metric("edits", "accuracy", "Edits", "t2i"),), _open)
