"""Which runs of a grid are finished. A folder counts only if it holds the very run that the grid asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unidecouple import config as configs
from unidecouple.compare.plan import Job
from unidecouple.train.run_folder import RESULT, begun, scored

SHOWN = 5
"""Differences shown per folder, and folders shown."""


def finished(planned: Sequence[Job], folder: Path) -> list[Job]:
    """The jobs of ``planned`` whose scores are in their place in ``folder``.

    Raises:
        ValueError: a job's place holds another run, begun or finished; with what differs.
    """
    foreign = [line for job in {job.folder: job for job in planned}.values() if (line := _foreign(job, folder))]
    if foreign:
        lines, more = "\n  ".join(foreign[:SHOWN]), f"\n  and {len(foreign) - SHOWN} more" * (len(foreign) > SHOWN)
        raise ValueError(
            f"{folder} holds runs of another grid:\n  {lines}{more}\ngive another folder (--output), remove those runs, or "
            "change the recipe back"
        )
    return [job for job in planned if scored(folder / job.folder)]


def _foreign(job: Job, folder: Path) -> str:
    """What is wrong with the place of ``job``; "" if it is empty or holds the job's own run."""
    mine, record = folder / job.folder, job.record_name
    if not job.merge and not begun(mine):
        return ""
    if not (mine / record).is_file():
        return f"{mine} has {RESULT} but no {record} of the run" if (mine / RESULT).is_file() else ""
    found = configs.differences(configs.load(type(job.record), [mine / record]), job.record)
    return f"{mine / record} has {some(found)}" if found else ""


def some(differences: Sequence[str]) -> str:
    """The first of ``differences``, and how many more there are."""
    return ", ".join(differences[:SHOWN]) + (f", and {len(differences) - SHOWN} more" if len(differences) > SHOWN else "")
