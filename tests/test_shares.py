"""A process's share, from the variables that launchers set."""

from __future__ import annotations

import pytest

from unidecouple.shares import ALONE, local_rank, share_of_environment

ARRAY = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "0"}


@pytest.mark.parametrize(
    ("environ", "rank", "size"),
    [
        ({}, 0, 1),
        ({"RANK": "2", "WORLD_SIZE": "4"}, 2, 4),
        ({"RANK": "0", "WORLD_SIZE": "1"}, 0, 1),
        (ARRAY, 5, 8),
        ({**ARRAY, "SLURM_ARRAY_TASK_MIN": "1"}, 4, 8),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "14", "SLURM_ARRAY_TASK_STEP": "2"}, 7, 8),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, 3, 4),
        ({"SLURM_NTASKS": "4"}, 0, 1),  # an allocation without srun
        ({**ARRAY, "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, 11, 16),
        ({**ARRAY, "RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, 11, 16),  # torchrun started by srun
    ],
)
def test_shares_by_hand(environ: dict[str, str], rank: int, size: int) -> None:
    share = share_of_environment(environ)
    assert (share.rank, share.size, share.independent) == (rank, size, size > 1)
    assert (share is ALONE) == (size == 1)


def test_shares_cover_everything_once() -> None:
    environs = ({"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": "3"} for number in range(3))
    parts = [share_of_environment(environ).of(range(10)) for environ in environs]
    assert sorted(number for part in parts for number in part) == list(range(10))


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "9"}, "SLURM_ARRAY_TASK_ID=9 does not fit SLURM_ARRAY_TASK_COUNT=8.*--array=0-7"),
        ({"SLURM_ARRAY_TASK_ID": "0"}, "SLURM_ARRAY_TASK_COUNT=None must be a whole number"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK='x' must be a whole number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 does not fit WORLD_SIZE=2"),
    ],
)
def test_what_does_not_fit_is_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        share_of_environment(environ)


def test_the_gpu_of_a_process() -> None:
    assert local_rank({}) == 0
    assert local_rank({"SLURM_LOCALID": "3"}) == 3
    assert local_rank({"LOCAL_RANK": "1", "SLURM_LOCALID": "3"}) == 1
