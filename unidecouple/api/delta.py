"""Find what fine-tuning broke, and mend it without training."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from unidecouple.api.training import PathLike, print_at_once
from unidecouple.delta.decouple import DecoupleOptions
from unidecouple.delta.decouple import decouple as write_decoupled
from unidecouple.delta.guard import GuardOptions
from unidecouple.delta.guard import guard as compare_models
from unidecouple.source import PrintLine
from unidecouple.train.launch import processes


def guard(
    base: PathLike,
    tuned: PathLike,
    output: PathLike | None = None,
    options: GuardOptions | None = None,
    *,
    device: str = "auto",
    print_line: PrintLine = print_at_once,
) -> dict[str, Any]:
    """Compare a fine-tuned model with its base: what moved, whether a task became worse, and where the damage sits.

    Args:
        base, tuned: checkpoints in any layout, runs' folders, or shipped bases' names.
        output: folder of guard.json and guard.html; None: nothing is written.
        options: see ``GuardOptions``; ``device`` replaces its device.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".
        print_line: gets lines of progress.

    Returns:
        What guard.json holds. ``worse`` lists the tasks that are significantly worse.

    Raises:
        ValueError: the two cannot be compared, or data or benchmarks do not fit.
    """
    target = None if output is None else Path(output)
    with processes(device, bf16=False, kind="ddp") as place:
        chosen = replace(options or GuardOptions(), device=place.device)
        return compare_models(os.fspath(base), os.fspath(tuned), chosen, target, print_line)


def decouple(
    base: PathLike,
    tuned: PathLike,
    output: PathLike,
    options: DecoupleOptions | None = None,
    *,
    device: str = "auto",
    print_line: PrintLine = print_at_once,
) -> Path:
    """Make a checkpoint that serves one task as the base did and the other as the tuned model does, without training.

    Args:
        base, tuned: checkpoints in any layout, runs' folders, or shipped bases' names.
        output: folder to write.
        options: see ``DecoupleOptions``; ``device`` replaces its device. None: understanding from the base, generation at rank 32.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".
        print_line: gets lines of progress.

    Returns:
        ``output``, or the page of mode "front".

    Raises:
        ValueError: the two cannot be compared, the mode does not fit them, or something has to be chosen and there are no data.
    """
    with processes(device, bf16=False, kind="ddp") as place:
        chosen = replace(options or DecoupleOptions(command="unidecouple.decouple"), device=place.device)
        return write_decoupled(os.fspath(base), os.fspath(tuned), Path(output), chosen, print_line)
