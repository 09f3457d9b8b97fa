"""Merging: two single-task models of one start become one, without joint training.

To add one: a file with a frozen dataclass that has ``kind``, its line in ``Merging``, and where its coefficients come from in
``train/merging.py``.
"""

from __future__ import annotations

from typing import get_args

from unidecouple.methods.merging.adamerging import AdaMerging
from unidecouple.methods.merging.task_arithmetic import TaskArithmetic

Merging = TaskArithmetic | AdaMerging
"""The typed union that recipes and ``unidecouple merge`` choose from by ``kind``."""

MERGINGS: tuple[type[Merging], ...] = get_args(Merging)

__all__ = ["MERGINGS", "AdaMerging", "Merging", "TaskArithmetic"]
