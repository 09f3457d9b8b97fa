"""C3 and C4 again, with ``torch.compile`` (inductor) around a decoding step: does it gain anything on a CPU?

``python -m benchmarks.compiled``, some minutes, most of them the compiler's; not part of ``make bench``. A step is compiled whole,
once for each size, as graphs are recorded on a GPU: attention reads keys in buckets, and experts stand side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks import decode_layer, image_loop
from benchmarks.decode_layer import CALLS, LAID_OUT, decoder_of
from benchmarks.image_loop import ENGINE, PICTURES
from benchmarks.record import Result, Row
from benchmarks.timing import LEAST_REPEATS, Ratio, SidesDifferError, interleave, one_thread
from unidecouple.batch import Task
from unidecouple.generate.fixed import FixedDecoder

COMPILED = "compiled"


def compiled(step: Callable[[], None]) -> Callable[[], None]:
    """A ``Recorder``: without a break in the graph, or not at all."""
    made: Callable[[], None] = torch.compile(step, fullgraph=True, dynamic=False)
    made()
    return made


def layers(repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of the mixture of one task, by rows."""
    found = {}
    for shape in (decode_layer.SHAPES[0], decode_layer.SHAPES[-1]):
        torch._dynamo.reset()
        x, _ = shape.inputs()
        plain, fixed = (FixedDecoder(decoder_of(shape), Task.T2I) for _ in range(2))
        fixed.waits = False  # reading counts on the host would break the graph
        whole = torch.compile(partial(fixed.feed_forward, fixed.blocks[0]), fullgraph=True, dynamic=False)
        sides = {LAID_OUT: partial(plain.feed_forward, plain.blocks[0], x), COMPILED: partial(whole, x)}
        if not torch.allclose(sides[COMPILED](), sides[LAID_OUT](), rtol=0, atol=1e-4 * float(sides[LAID_OUT]().abs().max())):
            raise SidesDifferError(f"{COMPILED} computes something else than {LAID_OUT}: nothing was timed")
        turns = {name: lambda side=side: [side() for _ in range(CALLS)] for name, side in sides.items()}
        found[f"{shape.tokens} rows"] = interleave(turns, repeats, lambda: None)
    return found


def loops(repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of whole images, by how many at a time."""
    found = {}
    for pictures in PICTURES:
        torch._dynamo.reset()  # it stops at eight sizes in all
        made = {ENGINE: image_loop.sides(pictures), COMPILED: image_loop.sides(pictures, recorder=compiled)}
        if not torch.equal(made[COMPILED].engine(True), made[ENGINE].engine(True)):
            raise SidesDifferError(f"{COMPILED} draws other tokens than {ENGINE}: nothing was timed")
        sides = {name: partial(one.engine, False) for name, one in made.items()}
        found[f"{pictures} images"] = interleave(sides, repeats, lambda: None)
    return found


@torch.no_grad()
def run(repeats: int = LEAST_REPEATS) -> Result:
    """Compare and time."""
    one_thread()
    seconds = loops(repeats) | layers(repeats)
    rows = []
    for what, each in seconds.items():
        plain, own = (next(times for name, times in each.items() if (name == COMPILED) is one) for one in (False, True))
        ratio = Ratio.of(plain, own)
        rows.append(Row(f"{what}: as it is / {COMPILED}", ratio.median, "x", ratio.low, ratio.high))
    title = "torch.compile around a decoding step on a CPU (more is better)"
    return Result("compiled", title, {"repeats": repeats, "seed": 0}, rows, {"seconds": seconds})


if __name__ == "__main__":
    result = run()
    print(f"{result.table()}\n{result.write()}")
