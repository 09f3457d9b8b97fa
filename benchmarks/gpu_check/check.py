"""What every part uses: findings, attempts that may fail, time, memory, kernels and host waits of the device."""

from __future__ import annotations

import collections
import gc
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_check.findings import Findings, Goal
from unidecouple.generate.replay import Recorder, recorder_of

ROOT = Path(__file__).parents[2]


@dataclass
class Check:
    """One part's access to the device and to the findings.

    Attributes:
        findings: of this part.
        kind: "cuda" or "cpu".
        tiny: sizes that a CPU can do.
        errors: attempts that failed so far.
    """

    findings: Findings
    kind: str
    tiny: bool
    errors: int = 0

    @property
    def device(self) -> torch.device:
        """Where to compute."""
        return torch.device("cuda", 0) if self.cuda else torch.device("cpu")

    @property
    def cuda(self) -> bool:
        """Whether that is a GPU."""
        return self.kind == "cuda"

    def there(self) -> bool:
        """Whether the device exists."""
        return not self.cuda or torch.cuda.is_available()

    def add(self, name: str, value: float | None = None, unit: str = "", goal: Goal | None = None, **details: Any) -> None:
        """See ``Findings``."""
        self.findings.add(name, value, unit, goal, **details)

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Record an error of the block as a finding and go on; free the device's memory afterwards."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # whatever fails must not stop what comes next
            self.errors += 1
            self.add(name, error=f"{type(error).__name__}: {error}"[:500], where=traceback.format_exc()[-1000:])
        if self.cuda:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def now(self) -> float:
        """Wall seconds, after the device has finished what it was given."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, call: Callable[[], object], repeats: int = 5, warm: int = 2) -> float:
        """Median wall seconds of ``call``; of a single call with ``tiny``."""
        if self.tiny:
            repeats, warm = 1, 0
        for _ in range(warm):
            call()
        found = []
        for _ in range(repeats):
            start = self.now()
            call()
            found.append(self.now() - start)
        return sorted(found)[repeats // 2]

    def peak_gb(self) -> float | None:
        """Most memory allocated since the last attempt ended."""
        return round(torch.cuda.max_memory_allocated() / 1e9, 2) if self.cuda else None

    def recorder(self) -> Recorder:
        """CUDA graphs; on a CPU, what repeats a step's operators."""
        return recorder_of(self.device) or again

    def kernels(self, call: Callable[[], object], rows: int = 14) -> dict[str, Any]:
        """Launches, milliseconds and the costliest kernels of one ``call``."""
        with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * self.cuda]) as taken:
            call()
            self.now()
        sums: dict[str, list[float]] = collections.defaultdict(lambda: [0, 0.0])
        for event in taken.events() or ():
            if self.cuda and event.device_type.name != "CUDA":
                continue
            spent = event.time_range.elapsed_us() if self.cuda else event.self_cpu_time_total
            sums[event.name[:90]][0] += 1
            sums[event.name[:90]][1] += spent / 1e3
        top = sorted(sums.items(), key=lambda item: -item[1][1])[:rows]
        launches, spent = (sum(values[place] for values in sums.values()) for place in (0, 1))
        return {"launches": launches, "kernel_ms": spent, "top": [(name, count, round(ms, 3)) for name, (count, ms) in top]}

    def waits(self, call: Callable[[], object]) -> dict[str, Any]:
        """How often the host waits for the device in one ``call``, by place; nothing on a CPU."""
        if not self.cuda:
            call()
            return {}
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        places = collections.Counter(
            f"{one.filename.split('site-packages/')[-1].removeprefix(f'{ROOT}/')}:{one.lineno}"
            for one in caught
            if "synchroniz" in str(one.message).lower()
        )
        return {"waits": sum(places.values()), "waits_at": places.most_common(12)}


def again(step: Callable[[], None]) -> Callable[[], None]:
    """Recorder of a device without graphs."""
    step()
    return step


class Switched:
    """A recorder whose recordings can be passed over, so that one engine, with one copy of its weights, is timed in both ways."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder, self.on = recorder, True

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        """See ``Recorder``."""
        replay = self.recorder(step)
        return lambda: replay() if self.on else step()
