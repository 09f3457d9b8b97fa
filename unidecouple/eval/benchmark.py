"""The interface of benchmarks: what they ask a model, and how answers or images become score rows.

A benchmark never sees the model, so a checkpoint, a server and a test double are scored by the same code. Every row names its
judge, ceiling and floor: a score by a judge of one's own means nothing without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np

from unidecouple.batch import LANGUAGE, Task
from unidecouple.data.formats.record import ImageBytes, ImageFile
from unidecouple.eval.statistics import ClusteredProportion, MeanOfProportions, RatioOfSums


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


Picture = np.ndarray | ImageFile | ImageBytes
"""An image at the model's own size (uint8 (H, W, 3)), or a stored image of any size."""


@dataclass(frozen=True)
class Query:
    """A question as it is put to a model.

    Attributes:
        id: unique in the benchmark; answers are kept by it.
        text: the whole user turn; without an image a passage, or what comes before each of ``choices``.
        picture: see ``Picture``. None: nothing is asked, and the answer is three numbers: the passage's log-likelihood in nats, its
            tokens, and how many of them stand for unknown words. With ``choices`` it is one number per choice: its log-likelihood
            in nats after ``text`` and a space.
        where: file and line, for messages; empty for generated questions.
        choices: of a multiple-choice question.
        further: images that stand after ``picture``, each as it.
    """

    id: str
    text: str
    picture: Picture | None
    where: str = ""
    choices: tuple[str, ...] = ()
    further: tuple[Picture, ...] = ()

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All images, in order."""
        return () if self.picture is None else (self.picture, *self.further)


@dataclass(frozen=True)
class ImageVerdict:
    """The judge's decision on image number ``image`` of prompt number ``prompt``; ``reason`` is empty if it is correct."""

    prompt: int
    image: int
    tag: str
    text: str
    correct: bool
    reason: str


@dataclass(frozen=True)
class BenchmarkResult:
    """Scores of one model on one benchmark.

    Attributes:
        scores: rows.
        proportions: metric -> the values that the row is the mean of, for its interval.
        failures: number of answers that could not be read, by kind; zeros too.
        verdicts: one per image, in order of prompt and image; empty for questions.
    """

    scores: tuple[Score, ...]
    proportions: Mapping[str, ClusteredProportion | MeanOfProportions | RatioOfSums] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)
    verdicts: tuple[ImageVerdict, ...] = ()

    @property
    def judge(self) -> str:
        """The parser or detector that decided."""
        return self.scores[0].judge or ""


Answers = Mapping[str, str]
"""Query's id -> the model's answer."""
Images = Sequence[Sequence[np.ndarray]]
"""Images (uint8 (H, W, 3)) of every prompt, in order."""
Sources = Sequence[Sequence[Picture]]
"""Source images of every prompt, in order."""
Metadata = Mapping[str, Any]
"""A prompt with what it asks for: a line of GenEval's ``evaluation_metadata.jsonl``. "prompt" is the text."""


@dataclass(frozen=True)
class QABenchmark:
    """A benchmark of questions about images, or of passages of text.

    Attributes:
        name: of the benchmark.
        queries: in the order of the files.
        score: from answers to all queries to the result.
        files: what was read: name -> SHA-256; empty for generated questions.
        export: writes answers in the benchmark's official form to a folder; None where there is none.
    """

    name: str
    queries: tuple[Query, ...]
    score: Callable[[Answers], BenchmarkResult]
    files: Mapping[str, str] = field(default_factory=dict)
    export: Callable[[Answers, Path], None] | None = None


@dataclass(frozen=True)
class GenerationBenchmark:
    """A benchmark of prompts to generate images for.

    Attributes:
        name: of the benchmark.
        metadata: one JSON object per prompt; it is written beside the prompt's images.
        num_images: images per prompt.
        score: from the images of all prompts to the result; None where no judge comes with the benchmark.
        read_detections: the result from a file that says what another detector saw in the images.
        files: what was read: name -> SHA-256; empty for generated prompts.
        sources: source images of each prompt; empty where no prompt has any.
    """

    name: str
    metadata: Sequence[Metadata]
    num_images: int
    score: Callable[[Images], BenchmarkResult] | None
    read_detections: Callable[[Path], BenchmarkResult] | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    sources: Sources = ()

    def score_images(self, images: Images) -> BenchmarkResult:
        """The result of ``images``.

        Raises:
            ValueError: no judge comes with the benchmark.
        """
        if self.score is None:
            raise ValueError(f"no judge of images comes with {self.name}: detect what they show, and give the file of detections")
        return self.score(images)


NONE, OWN, ORACLE, WRONG = "none", "own", "oracle", "wrong"
"""Conditions of a ``VisualCotBenchmark``: no auxiliary image, the model's own, the true one, that of another question."""


@dataclass(frozen=True)
class VisualCotBenchmark:
    """Questions that are asked without and with an auxiliary image, which the model generates from the question's images first.

    Attributes:
        name: of the benchmark.
        queries: without auxiliary images.
        generation: one prompt per query, with its source images; one image each is the model's own auxiliary image.
        score: from condition -> answers to all queries, and the model's own images (none where only ``NONE`` is scored), to the
            result.
        given: condition -> one auxiliary image per query. Without ``WRONG`` it is the model's own image of the next question.
        texts: of each query with an auxiliary image; empty where they are those without.
        files: what was read: name -> SHA-256; empty for generated questions.
    """

    name: str
    queries: tuple[Query, ...]
    generation: GenerationBenchmark
    score: Callable[[Mapping[str, Answers], Images], BenchmarkResult]
    given: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)
    texts: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    def asked(self, own: Sequence[Sequence[Picture]]) -> dict[str, tuple[Query, ...]]:
        """Return condition -> queries with its auxiliary images as last images.

        ``own`` is the model's image of each prompt; conditions that need images which are not there yet are left out.
        """
        shown: dict[str, Sequence[Picture]] = dict(self.given)
        if len(own) == len(self.queries):
            mine = [image for [image] in own]
            shown = {OWN: mine, WRONG: [*mine[1:], *mine[:1]]} | shown
        asked = {NONE: self.queries}
        texts = self.texts or [query.text for query in self.queries]
        for condition in self.conditions[1:]:
            if condition in shown:
                rows = zip(self.queries, texts, shown[condition], strict=True)
                asked[condition] = tuple(replace(query, text=text, further=(*query.further, one)) for query, text, one in rows)
        return asked

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of all conditions, in order."""
        return (NONE, OWN, *(condition for condition in self.given if condition != WRONG), WRONG)


AnyBenchmark = QABenchmark | GenerationBenchmark | VisualCotBenchmark
GenerateImages = Callable[[Sequence[str], int, int], list[list[np.ndarray]]]
"""See ``ScoredModel.generate``; of prompts without source images, or with those of their benchmark."""


class ScoredModel(Protocol):
    """A model to be scored; ``eval.model.EvalModel`` wraps a checkpoint."""

    def ask(self, queries: Sequence[Query], /) -> list[str]:
        """Answer every query, in order."""

    def generate(self, prompts: Sequence[str], num_images: int, first: int, sources: Sources = (), /) -> list[list[np.ndarray]]:
        """Generate ``num_images`` images (uint8 (H, W, 3)) per prompt; ``first`` is the number of the first prompt.

        ``sources`` are the source images of each prompt, given for benchmarks of edits only. Image j of prompt i depends on the
        model's seed, i and j alone, so that neither processes nor restarts change any.
        """


def evaluate(benchmark: AnyBenchmark, model: ScoredModel, batch_size: int = 256) -> BenchmarkResult:
    """Score ``model`` on ``benchmark`` in memory; nothing is written.

    Raises:
        ValueError: no judge comes with the benchmark.
    """
    if isinstance(benchmark, GenerationBenchmark):
        return benchmark.score_images(generate(model, benchmark))
    if isinstance(benchmark, VisualCotBenchmark):
        own = generate(model, benchmark.generation)
        return benchmark.score({name: _answers(model, some, batch_size) for name, some in benchmark.asked(own).items()}, own)
    return benchmark.score(_answers(model, benchmark.queries, batch_size))


def _answers(model: ScoredModel, queries: Sequence[Query], batch_size: int) -> dict[str, str]:
    answers: dict[str, str] = {}
    for start in range(0, len(queries), batch_size):
        answers |= ask(model.ask, queries[start : start + batch_size])
    return answers


def ask(model: Callable[[Sequence[Query]], list[str]], queries: Sequence[Query]) -> dict[str, str]:
    """Return query's id -> answer.

    Raises:
        ValueError: the model did not give exactly one answer per question (pairs would silently shift otherwise).
    """
    answers = model(queries)
    if len(answers) != len(queries):
        raise ValueError(f"the model gave {len(answers)} answers to {len(queries)} questions; it must give one for each")
    return {query.id: answer for query, answer in zip(queries, answers, strict=True)}


def generator(model: ScoredModel, benchmark: GenerationBenchmark) -> GenerateImages:
    """Return what generates images of consecutive prompts of ``benchmark``, with their source images, as ``model.generate``."""

    def made(prompts: Sequence[str], num_images: int, first: int) -> list[list[np.ndarray]]:
        shown = benchmark.sources[first : first + len(prompts)]
        return model.generate(prompts, num_images, first, shown) if shown else model.generate(prompts, num_images, first)

    return made


def generate(model: ScoredModel, benchmark: GenerationBenchmark) -> list[list[np.ndarray]]:
    """Generate the images of every prompt of ``benchmark``.

    Raises:
        ValueError: the model gave another number of prompts or of images.
    """
    images = generator(model, benchmark)([line["prompt"] for line in benchmark.metadata], benchmark.num_images, 0)
    counts = [len(of_prompt) for of_prompt in images]
    if counts != [benchmark.num_images] * len(benchmark.metadata):
        wanted = f"{benchmark.num_images} for each of {len(benchmark.metadata)} prompts"
        raise ValueError(f"the model gave {counts} images; it must give {wanted}")
    return images


_ORDER: Final = (Task.MMU.key, LANGUAGE, Task.T2I.key, "")

Unit = Literal["share", "points", "nats", "number"]
"""Of a metric's values: shares of [0, 1], points of a benchmark's own scale, nats per token, or plain numbers."""


@dataclass(frozen=True)
class Metric:
    """One metric of a benchmark, and how reports show it.

    Attributes:
        benchmark, metric: names in score rows.
        title: name in reports.
        task: key of the task that it scores, "mmu", "language" or "t2i"; "" where it scores none of them.
        unit: see ``Unit``.
        higher_is_better: direction.
    """

    benchmark: str
    metric: str
    title: str
    task: str = ""
    unit: Unit = "share"
    higher_is_better: bool = True

    @property
    def rank(self) -> int:
        """Place in reports: understanding, language, generation, then metrics of none of them."""
        return _ORDER.index(self.task)

    def gain(self, difference: float) -> float:
        """Return ``difference`` signed so that more than zero is better."""
        return difference if self.higher_is_better else -difference
