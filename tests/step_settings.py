"""Settings of one training step, as tests of a single step give them."""

from __future__ import annotations

from collections.abc import Sequence

from unidecouple.batch import Task
from unidecouple.methods.objective import Objective
from unidecouple.train.gradients import Gradients
from unidecouple.train.step import StepSettings


def step_settings(
    objective: Objective,
    tasks: Sequence[Task] = tuple(Task),
    routing: str | None = None,
    max_grad_norm: float = 1.0,
    gradients: Gradients | None = None,
) -> StepSettings:
    """Of one process, every micro-batch routed by ``routing``."""
    return StepSettings(
        objective,
        tasks,
        max_grad_norm,
        gradients=gradients or Gradients(),
        forward_options=lambda batch, step: {"routing": routing},
    )
