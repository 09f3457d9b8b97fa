"""Gradient methods: which direction the weights go, given each task's gradient.

To add one: a file with a frozen dataclass that has ``kind``, ``parameters``, ``by_task`` and ``combine``, its name in ``Gradient``,
a recipe.

A strategy works on the weights that ``parameters`` names and that both tasks' losses reach. All else (heads, the vision tower,
experts and low-rank updates of one task) gets the plain sum, and so do the gradients of losses that belong to no task (group
router, load balance): they are added when the tasks' are combined. One that draws uses torch's generator, which the step seeds
(``aggregation.draws``).
"""

from __future__ import annotations

from typing import get_args

from unidecouple.methods.gradient.cagrad import CAGrad
from unidecouple.methods.gradient.maop import MAOP
from unidecouple.methods.gradient.mgda import MGDA
from unidecouple.methods.gradient.pcgrad import PCGrad
from unidecouple.methods.gradient.sum import Sum
from unidecouple.methods.gradient.torchjd_aggregator import TorchJDAggregator

Gradient = Sum | PCGrad | MGDA | CAGrad | MAOP | TorchJDAggregator
"""The typed union that recipes choose from by ``kind``, and that property tests run over."""

GRADIENTS: tuple[type[Gradient], ...] = get_args(Gradient)

__all__ = ["GRADIENTS", "MAOP", "MGDA", "CAGrad", "Gradient", "PCGrad", "Sum", "TorchJDAggregator"]
