"""What a run took, over all its attempts: time, and memory."""

from __future__ import annotations

import time
from dataclasses import dataclass

from unidecouple.train.memory import peak_memory

SPENT = "spent.json"
"""What a merge took, beside the weights that it wrote."""


@dataclass(frozen=True)
class ResourceUsage:
    """What was taken.

    Attributes:
        wall_seconds: passed.
        cpu_seconds: of all threads of the first process.
        peak_memory_bytes: most main memory that it held at once; None where the system does not say.
    """

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_bytes: int | None = None


class Meter:
    """Counts from now on, on top of ``before``: what earlier attempts had taken when the checkpoint that is resumed was written.

    What an attempt did after its last checkpoint is lost with it, and counts nowhere.
    """

    def __init__(self, before: ResourceUsage | None = None) -> None:
        self._before = before or ResourceUsage()
        self._began = time.monotonic(), time.process_time()

    def read(self) -> ResourceUsage:
        """All so far."""
        before, (wall, cpu) = self._before, self._began
        peaks = [peak for peak in (before.peak_memory_bytes, peak_memory()) if peak is not None]
        return ResourceUsage(
            before.wall_seconds + time.monotonic() - wall,
            before.cpu_seconds + time.process_time() - cpu,
            max(peaks, default=None),
        )
