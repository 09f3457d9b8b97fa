"""Time and memory that a run used, over all its attempts."""

from __future__ import annotations

import time
from dataclasses import dataclass

from unidecouple.train.memory import peak_memory

SPENT = "spent.json"
"""Resource usage of a merge, beside the weights that it wrote."""


@dataclass(frozen=True)
class ResourceUsage:
    """Time and memory used.

    Attributes:
        wall_seconds: elapsed.
        cpu_seconds: of all threads of the first process.
        peak_memory_bytes: peak main memory of that process; None if the system does not report it.
    """

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_bytes: int | None = None


class Meter:
    """Measures from its creation, on top of ``before``: the usage saved in the checkpoint that is resumed.

    Work after the last checkpoint of an attempt is lost and not counted.
    """

    def __init__(self, before: ResourceUsage | None = None) -> None:
        self._before = before or ResourceUsage()
        self._began = time.monotonic(), time.process_time()

    def read(self) -> ResourceUsage:
        """Return the usage so far."""
        before, (wall, cpu) = self._before, self._began
        peaks = [peak for peak in (before.peak_memory_bytes, peak_memory()) if peak is not None]
        return ResourceUsage(
            before.wall_seconds + time.monotonic() - wall,
            before.cpu_seconds + time.process_time() - cpu,
            max(peaks, default=None),
        )
