"""A model double for benchmarks: a function answers each question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unidecouple.eval.benchmark import Query


@dataclass(frozen=True)
class Answering:
    """Answers ``answer(image, question)``; ``image_of(prompt, number)`` is an image of a prompt."""

    answer: Callable[[np.ndarray, str], str] = lambda image, text: ""
    image_of: Callable[[str, int], np.ndarray] = lambda prompt, number: np.zeros((8, 8, 3), np.uint8)

    def ask(self, queries: Sequence[Query], /) -> list[str]:
        pictures = [query.picture for query in queries if isinstance(query.picture, np.ndarray)]
        return [self.answer(picture, query.text) for picture, query in zip(pictures, queries, strict=True)]

    def generate(self, prompts: Sequence[str], num_images: int, first: int, /) -> list[list[np.ndarray]]:
        return [[self.image_of(prompt, number) for number in range(num_images)] for prompt in prompts]
