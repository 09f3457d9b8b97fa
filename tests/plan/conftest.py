"""Steps of tiny models, measured and planned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from measured_step import Step, measured_step
from unidecouple.batch import Batch, JointBatch
from unidecouple.models.janus import UniJanusForConditionalGeneration


@pytest.fixture
def step(make_model: Callable[..., UniJanusForConditionalGeneration], joint_batch: tuple[Batch, Batch]) -> Callable[..., Step]:
    """``step(train, routing, attention, batch, again, **text)``; ``text`` overrides fields of the model's ``UniLlamaConfig``."""

    def take(
        train: dict[str, float],
        routing: str = "learned",
        attention: str = "eager",
        batch: JointBatch | None = None,
        again: bool = False,
        **text: Any,
    ) -> Step:
        return measured_step(make_model(experts_backend="loop", **text), batch or joint_batch, train, routing, attention, again)

    return take
