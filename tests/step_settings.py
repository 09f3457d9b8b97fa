"""Training steps as tests take them: one by itself, or all of a trainer's stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch.optim import Optimizer

from unidecouple.batch import Task
from unidecouple.methods.objective import Objective
from unidecouple.models.base import UnifiedModel
from unidecouple.train.gradients import Gradients
from unidecouple.train.stages import StageRun, Trainer
from unidecouple.train.step import StepSettings, train_step


class UnsavedTrainer(Trainer):
    """For tests that look at steps: the checkpoints of so few take longer than they do."""

    def save(self, running: StageRun, step: int, optimizer: Optimizer | None) -> None:
        """Write nothing."""


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


def run_stages(trainer: Trainer, resume: Path | None = None) -> UnifiedModel:
    """The model after all stages of ``trainer``, as ``train`` runs them."""
    with trainer.batches() as batches:
        for stage in trainer.stages(resume):
            for step in stage.steps():
                result = train_step(stage.model, stage.optimizer, batches.take(step - 1), stage.settings, step)
                batches.wait_until_idle()
                stage.finish_step(step, result)
    return trainer.model.eval()
