"""Peak memory of this process."""

from __future__ import annotations

import sys


def peak_memory() -> int | None:
    """Return the peak main memory of this process, bytes; None if the system does not report it (Windows)."""
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # macOS counts bytes, Linux KiB
