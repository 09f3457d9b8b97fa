"""What a benchmark needs of a model (two callables), what it asks, and what it gives back (score rows).

A benchmark never sees the model itself, so a checkpoint, a server and a test double are all scored by the same code. Every row
carries its judge, its ceiling and its floor: a score of a home-made judge means nothing without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from unidecouple.data.formats.record import ImageBytes, ImageFile
from unidecouple.eval.statistics import Share


class Answerer(Protocol):
    """A model that understands."""

    def __call__(self, images: Sequence[np.ndarray], questions: Sequence[str], /) -> list[str]:
        """Answer ``questions[i]`` about ``images[i]`` (uint8 (H, W, 3)), in plain text, in order."""
        ...


class Painter(Protocol):
    """A model that generates."""

    def __call__(self, prompts: Sequence[str], num_images: int, seed: int, /) -> list[list[np.ndarray]]:
        """Paint ``num_images`` pictures (uint8 (H, W, 3)) for each prompt, in order; equal seeds give equal pictures."""
        ...


@dataclass(frozen=True)
class Score:
    """One number of a benchmark.

    ``judge`` is the parser or detector that decided, ``ceiling`` what a perfect model gets from it, ``floor`` what a model that
    ignores its input gets. ``None`` where the notion has no meaning (a yes-ratio has no ceiling).
    """

    benchmark: str
    metric: str
    value: float
    judge: str | None = None
    ceiling: float | None = None
    floor: float | None = None

    def to_json(self) -> dict[str, object]:
        """The row as a JSON object with every field, in order."""
        return asdict(self)


@dataclass(frozen=True)
class Query:
    """A question as it is put to a model.

    Attributes:
        id: its own in the benchmark, under which answers are kept.
        text: the whole user turn.
        picture: at the model's own size (uint8 (H, W, 3)), or a picture of any size that has not been opened yet.
        where: file and line, for messages; empty for generated questions.
    """

    id: str
    text: str
    picture: np.ndarray | ImageFile | ImageBytes
    where: str = ""


@dataclass(frozen=True)
class Report:
    """What answers or pictures scored.

    Attributes:
        scores: rows.
        shares: what the rows of that metric are the share of, for their intervals.
        failures: what could not be read, by kind; zeros too.
    """

    scores: tuple[Score, ...]
    shares: Mapping[str, Share] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)


Answers = Mapping[str, str]
"""Query's id -> what the model said."""


@dataclass(frozen=True)
class Quiz:
    """A benchmark of questions.

    Attributes:
        name: of the benchmark.
        queries: in the order of the files.
        score: from answers to all queries to the report.
        parser: how answers are read.
        files: what was read: name -> SHA-256; empty for what is drawn.
        export: writes answers in the benchmark's official form to a folder; None where there is none.
    """

    name: str
    queries: tuple[Query, ...]
    score: Callable[[Answers], Report]
    parser: str
    files: Mapping[str, str] = field(default_factory=dict)
    export: Callable[[Answers, Path], None] | None = None


def ask(answerer: Answerer, images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
    """Put the questions to ``answerer``.

    Raises:
        ValueError: it did not give exactly one answer a question (pairs would silently shift otherwise).
    """
    answers = answerer(images, questions)
    if len(answers) != len(questions):
        raise ValueError(f"the answerer gave {len(answers)} answers to {len(questions)} questions; it must give one for each")
    return answers


def paint(painter: Painter, prompts: Sequence[str], num_images: int, seed: int) -> list[list[np.ndarray]]:
    """Have ``painter`` paint ``num_images`` pictures a prompt.

    Raises:
        ValueError: ``num_images`` is below 1, or the painter gave other numbers of prompts or of pictures.
    """
    if num_images < 1:
        raise ValueError(f"num_images is {num_images}; it must be at least 1")
    pictures = painter(prompts, num_images, seed)
    counts = [len(of_prompt) for of_prompt in pictures]
    if counts != [num_images] * len(prompts):
        raise ValueError(f"the painter gave {counts} pictures for {len(prompts)} prompts; it must give {num_images} for each")
    return pictures


Unit = Literal["share", "points", "nats", "number"]
"""Of a metric's values: shares of [0, 1], points of a benchmark's own scale, nats per token, or plain numbers."""


@dataclass(frozen=True)
class Metric:
    """One metric of a benchmark, and how reports show it.

    Attributes:
        benchmark, metric: names in score rows.
        title: name in reports.
        task: key of the task that it scores, "mmu" or "t2i"; "" where it scores neither.
        unit: see ``Unit``.
        higher_is_better: direction.
    """

    benchmark: str
    metric: str
    title: str
    task: str = ""
    unit: Unit = "share"
    higher_is_better: bool = True

    def gain(self, difference: float) -> float:
        """Return ``difference`` signed so that more than zero is better."""
        return difference if self.higher_is_better else -difference
