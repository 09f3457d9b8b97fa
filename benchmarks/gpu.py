"""G3 to G6: pictures on one GPU, at Janus-Pro's sizes with random weights in bfloat16, beside the loops that people run.

``make bench-gpu`` needs a CUDA device, 80 GB of it for 7B and for 128 pictures. **It has never run on one.** ``--tiny`` goes
through all of it on a CPU, at a size whose times say nothing, and writes no file.

All sides of a case run in one process, in turn; wall seconds, the device waited for. First, greedy tokens of all loops are compared
on the device in float32 at a small size, where rounding decides nothing; then the engine's own, replayed and launched from Python,
at the size itself. Understanding's tower and the image tokenizer's decoder are small: drawing tokens needs neither.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.image_loop import GUIDANCE, SMALL, Sides, sides
from benchmarks.record import Result, Row
from benchmarks.timing import LEAST_REPEATS, Ratio, SidesDifferError, interleave
from unidecouple.generate.replay import Recorder, recorder_of
from unidecouple.models.tiny import TinySize

DRAWN = TinySize(image_size=384, codes=16384, vision_hidden_size=32, vision_layers=1, vq_latent_channels=32)
SIZES = {
    "1B": replace(DRAWN, hidden_size=2048, num_hidden_layers=24, num_attention_heads=16, intermediate_size=5632),
    "7B": replace(DRAWN, hidden_size=4096, num_hidden_layers=30, num_attention_heads=32, intermediate_size=11008),
}
TINY = replace(
    SMALL, image_size=32, hidden_size=32, num_hidden_layers=2, intermediate_size=64, codes=32, vision_hidden_size=16,
    vq_channel_multiplier=(1, 1, 1, 1),
)  # fmt: skip
MIXTURE = {"ffn": "moe", "num_tasks": 1, "num_experts": 2}
"""Of one task: two experts and the shared one, each as wide as the FFN."""

REPLAYED, EAGER, LIBRARY, DEEPSEEK = "engine, replayed", "engine, from Python", "transformers generate", "deepseek's loop"


@dataclass(frozen=True)
class Case:
    """What is timed, and what is hoped for.

    Attributes:
        name: G3 to G6, and the size.
        size: in ``SIZES``.
        pictures: at a time.
        text: fields of the decoder; none is dense.
        seconds: at most, a picture.
        rate: at least, pictures a second.
        faster: at least, than each of the others.
        others: that are timed besides the engine.
    """

    name: str
    size: str
    pictures: int = 1
    text: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    rate: float | None = None
    faster: float | None = None
    others: tuple[str, ...] = (EAGER, LIBRARY, DEEPSEEK)


CASES = (
    Case("G3 1B", "1B", seconds=0.78, faster=10.0),
    Case("G3 7B", "7B", seconds=2.9, faster=4.0),
    Case("G4 1B", "1B", text=MIXTURE, seconds=1.3),
    Case("G4 7B", "7B", text=MIXTURE, seconds=4.8),
    Case("G5 1B", "1B", 16, MIXTURE, rate=9.0),
    Case("G5 7B", "7B", 16, MIXTURE, rate=2.6),
    Case("G6 1B", "1B", 128, rate=20.0, others=(EAGER, DEEPSEEK)),
)
DTYPE = torch.bfloat16


class Switched:
    """A recorder whose recordings can be passed over, so that one engine, with one copy of its weights, is timed in both ways."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder, self.on = recorder, True

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        """See ``Recorder``."""
        replay = self.recorder(step)
        return lambda: replay() if self.on else step()


def again(step: Callable[[], None]) -> Callable[[], None]:
    """The recorder of a device without graphs."""
    step()
    return step


class Machine:
    """Where it runs, and how time is told there.

    Args:
        device: a CUDA device, or with ``tiny`` a CPU.
        tiny: every model at ``TINY``; nothing is hoped for.
    """

    def __init__(self, device: torch.device, tiny: bool) -> None:
        self.device, self.tiny = device, tiny
        self.name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""

    def sides(self, case: Case, switch: Switched) -> Sides:
        """All that draw in ``case``."""
        pictures = min(case.pictures, 2) if self.tiny else case.pictures
        return sides(pictures, TINY if self.tiny else SIZES[case.size], self.device, DTYPE, switch, **case.text)

    def recorder(self) -> Switched:
        """Graphs, where there are any."""
        return Switched(recorder_of(self.device) or again)

    def now(self) -> float:
        """Wall seconds, once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def tidy(self) -> None:
        """Give back what the last case held."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> float | None:
        """Most memory of a case, GB."""
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.device.type == "cuda" else None


def ways(made: Sides, switch: Switched) -> dict[str, Callable[[bool], Tensor]]:
    """The sides by name, each greedily or not."""

    def engine(on: bool, greedy: bool) -> Tensor:
        switch.on = on
        return made.engine(greedy)

    return {
        REPLAYED: partial(engine, True),
        EAGER: partial(engine, False),
        LIBRARY: made.transformers,
        DEEPSEEK: made.deepseek,
    }


def agree(machine: Machine) -> None:
    """Compare greedy tokens of all sides, dense and mixture, at a small size in float32.

    Raises:
        SidesDifferError: they are not the same; nothing is timed then.
    """
    size = TINY if machine.tiny else SMALL
    for text in ({}, MIXTURE):
        switch = machine.recorder()
        found = ways(sides(2, size, machine.device, torch.float32, switch, **text), switch)
        wanted = found[REPLAYED](True).cpu()
        for name, way in found.items():
            if not torch.equal(way(True).cpu(), wanted):
                raise SidesDifferError(f"{name} draws other tokens than {REPLAYED} on {machine.device} ({text or 'dense'})")


def timed(case: Case, machine: Machine, repeats: int) -> tuple[list[Row], dict[str, Any]]:
    """Rows and details of ``case``.

    Raises:
        SidesDifferError: a replayed step draws other tokens than the same step launched from Python.
    """
    machine.tidy()
    switch = machine.recorder()
    made = machine.sides(case, switch)
    every = ways(made, switch)
    if not torch.equal(every[REPLAYED](True), every[EAGER](True)):
        raise SidesDifferError(f"{case.name}: {REPLAYED} and {EAGER} draw different tokens: nothing was timed")
    calls = {name: partial(every[name], False) for name in (REPLAYED, *case.others)}
    seconds = interleave(calls, repeats, lambda: None, machine.now)
    least, most, middle = min(seconds[REPLAYED]), max(seconds[REPLAYED]), sorted(seconds[REPLAYED])[repeats // 2]
    rows = []
    if case.rate is None:
        bound = None if machine.tiny else case.seconds
        rows.append(row(f"{case.name}: a picture", middle, least, most, bound, "s", less=True))
    else:
        slow, usual, fast = (made.pictures / value for value in (most, middle, least))
        bound = None if machine.tiny else case.rate
        rows.append(row(f"{case.name}: {made.pictures} at a time", usual, slow, fast, bound, "pictures/s"))
    for name in case.others:
        ratio = Ratio.of(seconds[name], seconds[REPLAYED])
        bound = None if machine.tiny or name == EAGER else case.faster
        rows.append(row(f"{case.name}: {name} / {REPLAYED}", ratio.median, ratio.low, ratio.high, bound, "x"))
    return rows, {"case": asdict(case), "seconds": seconds, "memory_gb": machine.peak()}


def row(what: str, value: float, low: float, high: float, goal: float | None, unit: str, less: bool = False) -> Row:
    """A line with its goal, if there is one: at most it (``less``), or at least."""
    if goal is None:
        return Row(what, value, unit, low, high)
    met = round(value, 2) <= goal if less else round(value, 2) >= goal
    return Row(what, value, unit, low, high, f"at {'most' if less else 'least'} {goal:g}", met)


@torch.no_grad()
def run(machine: Machine, names: str = "", repeats: int = LEAST_REPEATS) -> Result:
    """Compare, then time the cases whose names begin with ``names``.

    Raises:
        ValueError: there is no such case.
    """
    wanted = [case for case in CASES if case.name.startswith(names)]
    if not wanted:
        raise ValueError(f"--only {names!r} is none of {', '.join(case.name for case in CASES)}")
    agree(machine)
    rows: list[Row] = []
    details: dict[str, Any] = {}
    for case in wanted:
        more, details[case.name] = timed(case, machine, repeats)
        rows += more
        print("\n".join("  ".join(one.cells()) for one in more), file=sys.stderr, flush=True)  # a case takes minutes
    settings = {"dtype": str(DTYPE), "guidance": GUIDANCE, "repeats": repeats, "seed": 0, "tiny": machine.tiny}
    return Result("gpu", f"pictures on {machine.name or 'a CPU'}", settings, rows, details, machine.name)


def main(arguments: list[str] | None = None) -> None:
    """Run it, print the table and, on a GPU, write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="cases that begin so: G3, 'G3 7B', … (default: all)")
    parser.add_argument("--repeats", type=int, default=LEAST_REPEATS, help=f"turns (default: {LEAST_REPEATS}, the least)")
    parser.add_argument("--tiny", action="store_true", help="go through it at a tiny size, on a CPU if need be; no file")
    given = parser.parse_args(arguments)
    there = torch.cuda.is_available()
    if not there and not given.tiny:
        raise SystemExit("no CUDA device: these figures are of a GPU alone, and nothing was run; --tiny tries the code on a CPU")
    result = run(Machine(torch.device("cuda", 0) if there else torch.device("cpu"), given.tiny), given.only, given.repeats)
    print(result.table())
    if not given.tiny:
        print(result.write())


if __name__ == "__main__":
    main()
