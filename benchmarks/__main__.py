"""``python -m benchmarks`` (``make bench``): all benchmarks, one after the other; fails where a goal that was met is missed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import aia, allreduce, cache, decode_layer, hf_trainer, image_loop, layers, lora, operators, packing, slim_bytes
from benchmarks.record import RESULTS, Result

ALL: tuple[Callable[[], Result], ...] = (
    layers.BENCHMARK.run,
    lora.BENCHMARK.run,
    decode_layer.run,
    image_loop.run,
    operators.run,
    slim_bytes.run,
    allreduce.run,
    cache.run,
    packing.run,
    aia.run,
    hf_trainer.run,
)


def main(runs: Sequence[Callable[[], Result]] = ALL, folder: Path = RESULTS) -> int:
    """Run and write all; a result that loses a goal leaves its file as it was, so that the next run fails, too. The exit status."""
    lost: list[str] = []
    for run in runs:
        result = run()
        missed = result.lost(folder)
        print(f"{result.table()}\n{'not written' if missed else result.write(folder)}", flush=True)
        lost += missed
    print("\n".join(["goals that were met before and are missed now:", *lost] if lost else ["no goal was lost"]))
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
