"""Routing of one request: where each of its tokens is routed, layer by layer. Ours, not OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Semaphore
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from unidecouple.batch import Modality, Task
from unidecouple.data.sequences import Sample, TurnPart, collate
from unidecouple.diagnose.one_request import LayerRoute, RequestView, view_request
from unidecouple.models.base import UnifiedModel
from unidecouple.serve.errors import ApiError
from unidecouple.serve.prepare import Preparer
from unidecouple.serve.schemas import Body, Messages, Name, Whole
from unidecouple.serve.task_queue import QueueFullError

MOST = 4
"""Maximum requests running or waiting; more get a 429."""


Codes = Annotated[list[Whole], Field(fail_fast=True, max_length=1 << 14)]


class RoutingRequest(Body):
    """``POST /v1/routing``: a conversation and its answer: words, or an image generated for its last turn.

    The image is given by its tokens, as ``/v1/images/generations`` returns them: encoding its pixels gives other tokens.
    """

    model: Name
    messages: Messages
    answer: str | None = Field(None, description="text of the answer")
    drawn: Codes | None = Field(None, description="image_tokens of the generated image")


class Viewer:
    """Runs requests through the whole model with its routers; serving itself routes by label.

    Args:
        model: the engine's whole model, which stays in memory for this.
        preparer: reads conversations.
    """

    def __init__(self, model: UnifiedModel, preparer: Preparer) -> None:
        self.model, self._preparer = model, preparer
        self._thread = ThreadPoolExecutor(1, "unidecouple-viewer")
        self._room = Semaphore(MOST)

    def close(self) -> None:
        """Drop waiting requests; a running one may finish."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def begin(self, task: Task, sample: Sample) -> Future[dict[str, Any]]:
        """Return a future of the response to what ``read`` returned; computed on a separate thread, beside serving.

        Raises:
            QueueFullError: too many are running or waiting.
        """
        if not self._room.acquire(blocking=False):
            raise QueueFullError(1)
        future = self._thread.submit(lambda: self.to_json(task, sample, self.view(sample)))
        future.add_done_callback(lambda done: self._room.release())
        return future

    def read(self, body: RoutingRequest, pictures: Mapping[str, np.ndarray]) -> tuple[Task, Sample]:
        """The request's task and tokens. On the preparer's thread.

        Raises:
            ApiError: it cannot be read, or is too long.
        """
        if body.answer is not None and body.drawn is not None:
            raise ApiError(400, "give the answer or the generated image, not both", "drawn", "two_answers")
        turns: list[tuple[str, Sequence[TurnPart]]] = [*self._preparer.turns(body.messages, pictures)]
        builder = self._preparer.builder
        if body.drawn is not None:
            self._check_drawn(body.drawn)
            return Task.T2I, builder.generation(self._prompt(turns[-1][1]), body.drawn)  # generated from the last turn alone
        if body.answer is not None and body.answer.strip():
            self._preparer.check_text(body.answer, "answer")
            turns.append(("assistant", [body.answer]))
        sample = self._preparer.conversation(turns)
        if len(sample.input_ids) > self._preparer.context_length:
            message = f"{len(sample.input_ids)} tokens are more than {self._preparer.context_length}: shorten the conversation"
            raise ApiError(400, message, "messages", "context_length_exceeded")
        return Task.MMU, sample

    def view(self, sample: Sample) -> RequestView:
        """Compute the routing, on any thread."""
        return view_request(self.model, collate([sample], self._preparer.builder.tokenizer.pad_token_id).to(self.model.device))

    def to_json(self, task: Task, sample: Sample, view: RequestView) -> dict[str, Any]:
        """The response. Its lists over tokens are parallel."""
        text = self.model.config.text_config
        kinds = [Modality(kind).name.lower() for kind in view.modality.tolist()]
        label = view.label.tolist() if view.label is not None else [0] * len(kinds)
        words = [self._word(token) if kind == "text" else "" for token, kind in zip(sample.input_ids, kinds, strict=True)]
        return {
            "object": "routing",
            "task": task.key,
            "groups": list(view.groups),
            "experts": list(text.expert_groups) if text.mixture_layers else [1] * len(view.groups),
            "layers": text.num_hidden_layers,
            "served": "learned" if view.labelled is None else "label",
            "tokens": [{"text": word, "kind": kind, "label": group} for word, kind, group in zip(words, kinds, label, strict=True)],
            "learned": _rows(view.learned),
            "label": None if view.labelled is None else _rows(view.labelled),
            "interaction": None if view.interaction is None else [round(one, 4) for one in view.interaction.tolist()],
        }

    def _prompt(self, parts: Sequence[TurnPart]) -> str:
        words = [part for part in parts if isinstance(part, str)]
        if len(words) < len(parts):
            raise ApiError(400, "an image is generated from text alone: leave out images", "messages", "invalid_image")
        prompt = " ".join(words)
        self._preparer.prompt_ids(prompt, "messages")
        return prompt

    def _check_drawn(self, tokens: Sequence[int]) -> None:
        wanted, codes = self._preparer.builder.num_image_tokens, self.model.num_codes
        if len(tokens) != wanted or not all(0 <= token < codes for token in tokens):
            raise ApiError(400, f"an image is {wanted} tokens from 0 to {codes - 1}", "drawn", "invalid_image_tokens")

    def _word(self, token: int) -> str:
        word: str = self._preparer.builder.tokenizer.decode([token])
        return word


def _rows(routes: Sequence[LayerRoute]) -> list[dict[str, Any]]:
    def numbers(values: torch.Tensor | None) -> list[float] | None:
        return None if values is None else [round(value, 4) for value in values.tolist()]

    return [
        {
            "layer": route.layer,
            "group": route.group.tolist(),
            "expert": None if route.expert is None else route.expert.tolist(),
            "probability": numbers(route.probability),
            "sure": numbers(route.sure),
        }
        for route in routes
    ]
