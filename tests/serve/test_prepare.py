"""Preparing a request's jobs."""

from __future__ import annotations

from typing import Any

import pytest

from unidecouple.data.sequences import SequenceBuilder
from unidecouple.generate.engine import Engine
from unidecouple.generate.image_generator import generate_image_tokens
from unidecouple.serve.limits import Limits
from unidecouple.serve.prepare import Preparer
from unidecouple.serve.schemas import ImageRequest


@pytest.mark.parametrize(("negative", "count"), [(None, 1), ("a blue pig", 2)])
def test_each_prompt_is_tokenized_once(negative: str | None, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the request to the tokens of its three images."""
    calls: list[str] = []
    for name in ("generation_prompt", "conversation"):
        method = getattr(SequenceBuilder, name)

        def counted(self: SequenceBuilder, *given: Any, method: Any = method, **named: Any) -> Any:
            calls.append(given[0])
            return method(self, *given, **named)

        monkeypatch.setattr(SequenceBuilder, name, counted)
    engine = Engine.load("unified")
    body = ImageRequest(prompt="a photo of a red cow", negative_prompt=negative, n=3, seed=1)
    prepared = Preparer(engine, Limits()).images(body)
    assert generate_image_tokens(engine.images, prepared.jobs).shape == (3, 16)
    assert len(calls) == count
