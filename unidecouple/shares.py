"""Which part of a job this process does, from the variables that torchrun, srun and Slurm's job arrays set."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class WorkShare:
    """This process among those that share a job.

    Attributes:
        rank, size: its number, and how many processes there are.
        wait: a barrier.
        independent: whether processes do not wait for each other, and may run at different times: then a share is a fixed part of
            the whole job, whatever is done already.
    """

    rank: int = 0
    size: int = 1
    wait: Callable[[], None] = field(default=lambda: None)
    independent: bool = False

    @property
    def claims(self) -> bool:
        """Whether this process writes what all processes have in common."""
        return self.rank == 0 or self.independent

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Every ``size``-th of ``items``, from the one numbered ``rank``."""
        return items[self.rank :: self.size]


ALONE = WorkShare()


def share_of_environment(environ: Mapping[str, str] = os.environ) -> WorkShare:
    """The independent share that the launcher's variables name; ``ALONE`` where there are none.

    Tasks of a job array (``SLURM_ARRAY_TASK_ID`` of ``SLURM_ARRAY_TASK_COUNT``) are divided further by torchrun's ``RANK`` of
    ``WORLD_SIZE``, or by srun's ``SLURM_PROCID`` of ``SLURM_NTASKS``.

    Raises:
        ValueError: a variable is missing or no number, or the number is not below the count.
    """
    rank, size = _pair(environ, "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", (0, 1))
    for names in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if names[0] in environ and names[1] in environ:
            inner, count = _pair(environ, *names, (0, 1))
            rank, size = rank * count + inner, size * count
            break
    return ALONE if size == 1 else WorkShare(rank, size, independent=True)


def local_rank(environ: Mapping[str, str] = os.environ) -> int:
    """This process's number on its machine, which is that of its GPU."""
    return next((_number(environ, name) for name in ("LOCAL_RANK", "SLURM_LOCALID") if name in environ), 0)


def _pair(environ: Mapping[str, str], place: str, count: str, otherwise: tuple[int, int]) -> tuple[int, int]:
    if place not in environ:
        return otherwise
    number, size = _number(environ, place), _number(environ, count)
    if place == "SLURM_ARRAY_TASK_ID":
        first, step = (_number(environ, f"SLURM_ARRAY_TASK_{name}", usual) for name, usual in (("MIN", "0"), ("STEP", "1")))
        number = (number - first) // max(1, step)
    if not 0 <= number < size:
        raise ValueError(f"{place}={environ[place]} does not fit {count}={size}: use a range without gaps, as in --array=0-7")
    return number, size


def _number(environ: Mapping[str, str], name: str, otherwise: str | None = None) -> int:
    text = environ.get(name, otherwise)
    try:
        return int(text or "")
    except ValueError:
        raise ValueError(f"{name}={text!r} must be a whole number: start the command by torchrun, srun or sbatch") from None
