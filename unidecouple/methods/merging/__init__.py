"""Merging: two single-task models of one start become one, without joint training.

To add one: a file with a frozen dataclass that has ``kind``, its line in ``Merging``, and where its coefficients come from in
``train/merging.py``.
"""

from __future__ import annotations

from typing import get_args

from unidecouple.methods.merging.adamerging import AdaMerging
from unidecouple.methods.merging.concrete import Concrete
from unidecouple.methods.merging.doge import Doge
from unidecouple.methods.merging.esm import ESM
from unidecouple.methods.merging.task_arithmetic import TaskArithmetic
from unidecouple.methods.merging.ties import Ties
from unidecouple.methods.merging.tsv_m import TSVM

Merging = TaskArithmetic | AdaMerging | Ties | TSVM | Doge | Concrete | ESM
"""The typed union that recipes and ``unidecouple merge`` choose from by ``kind``."""

MERGINGS: tuple[type[Merging], ...] = get_args(Merging)

__all__ = ["ESM", "MERGINGS", "TSVM", "AdaMerging", "Concrete", "Doge", "Merging", "TaskArithmetic", "Ties"]
