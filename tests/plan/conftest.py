"""Steps of tiny models, measured and planned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from measured_step import Step, measured_step
from unidecouple.batch import Batch, JointBatch
from unidecouple.methods.objective import Objective
from unidecouple.models.janus import UniJanusForConditionalGeneration


@pytest.fixture
def step(make_model: Callable[..., UniJanusForConditionalGeneration], joint_batch: tuple[Batch, Batch]) -> Callable[..., Step]:
    """``step(train, routing, attention, batch, again, objective, **text)``; ``text`` overrides fields of ``UniLlamaConfig``."""

    def take(
        train: dict[str, float],
        routing: str = "learned",
        attention: str = "eager",
        batch: JointBatch | None = None,
        again: bool = False,
        objective: Objective | None = None,
        **text: Any,
    ) -> Step:
        model = make_model(experts_backend="loop", **text)
        return measured_step(model, batch or joint_batch, train, routing, attention, again, objective)

    return take
