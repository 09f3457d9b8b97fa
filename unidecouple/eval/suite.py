"""Benchmarks by name: how each is opened, and the metrics that reports show of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unidecouple import plugins
from unidecouple.batch import Task
from unidecouple.eval.benchmark import Metric, Quiz
from unidecouple.eval.gallery import Gallery

TEST_SEED: Final = 71
"""Of synthetic test sets and of pictures, as runs are scored."""

_LOSSES: Final = (
    Metric("answers", "log_probability", "Held-out answers", "mmu", "nats"),
    Metric("image_tokens", "log_probability", "Held-out image tokens", "t2i", "nats"),
)
"""Of runs on files; no benchmarks."""


@dataclass(frozen=True)
class Sizes:
    """How much a synthetic benchmark asks for.

    Attributes:
        pope_images: scenes of POPE.
        vqa_questions: of each kind.
        prompts_per_tag: of GenEval (102 exist).
        num_images: pictures a prompt, of published prompts too.
    """

    pope_images: int = 100
    vqa_questions: int = 200
    prompts_per_tag: int = 102
    num_images: int = 4


@dataclass(frozen=True)
class Options:
    """What to open.

    Attributes:
        data: folder of published files; None opens synthetic benchmarks.
        limit: the first so many of each part (a POPE split, an MMMU subject, an MME subtask's pictures, a GenEval tag, all of
            VQA); of a synthetic benchmark so many scenes, questions a kind, prompts a tag.
        seed: of synthetic scenes.
        parsers: names of parsers, each for the benchmark that knows it.
        sizes: see there.
        art: folder of other drawings for synthetic pictures that are asked about.
    """

    data: Path | None = None
    limit: int | None = None
    seed: int = 0
    parsers: tuple[str, ...] = ()
    sizes: Sizes = Sizes()
    art: Path | None = None

    def limited(self, size: int) -> int:
        """Return ``size``, or ``limit`` where that is less."""
        return size if self.limit is None else min(size, self.limit)

    def parser(self, known: Iterable[str], default: str) -> str:
        """Return the one of ``parsers`` that is among ``known``, else ``default``.

        Raises:
            ValueError: several are.
        """
        there = set(known)
        mine = [name for name in self.parsers if name in there]
        if len(mine) > 1:
            raise ValueError(f"--parser names {' and '.join(mine)}, which are of one benchmark: choose one")
        return mine[0] if mine else default


@dataclass(frozen=True)
class Benchmark:
    """A benchmark; its module's line in ``plugins.BENCHMARKS`` makes it known to evaluation, comparison and reports.

    Attributes:
        name: in score rows and on the command line.
        metrics: that reports show unless a recipe names others, the headline metric first.
        open: from the folder of published files.
        parsers: names of ways to read answers, of which ``Options.parsers`` may choose.
    """

    name: str
    metrics: tuple[Metric, ...]
    open: Callable[[Path, Options], Quiz | Gallery]
    parsers: tuple[str, ...] = ()


@functools.cache
def benchmarks() -> dict[str, Benchmark]:
    """Return every benchmark by name."""
    return {name: plugins.found(plugins.BENCHMARKS, name) for name in plugins.BENCHMARKS}


def open_benchmarks(names: Sequence[str], options: Options) -> list[Quiz | Gallery]:
    """The benchmarks called ``names``, in order.

    Raises:
        ValueError: an unknown name or parser, a limit below 1, or files that are missing or broken.
    """
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"limit is {options.limit}; it must be at least 1")
    known = benchmarks()
    for name in names:
        if name not in known:
            raise ValueError(f"unknown benchmark {name!r}; known: {', '.join(known)}")
        if options.data is None and name not in plugins.SYNTHETIC_BENCHMARKS:
            raise ValueError(f"{name} has no drawn form: give the folder of its published files with --data")
    parsers = {one.metrics[0].title: one.parsers for one in known.values() if one.parsers}
    for parser in options.parsers:
        if not any(parser in some for some in parsers.values()):
            there = "; ".join(f"{title} has {', '.join(some)}" for title, some in parsers.items())
            raise ValueError(f"unknown parser {parser!r}; {there}")
    return [_opened(name, options) for name in names]


def _opened(name: str, options: Options) -> Quiz | Gallery:
    if options.data is not None:
        return benchmarks()[name].open(options.data, options)
    opened: Quiz | Gallery = plugins.found(plugins.SYNTHETIC_BENCHMARKS, name)(options)
    return opened


@functools.cache
def headlines() -> tuple[Metric, ...]:
    """Return the metrics that reports show of each benchmark unless a recipe names others; understanding first."""
    every = [metric for benchmark in benchmarks().values() for metric in benchmark.metrics] + [*_LOSSES]
    tasks = [task.key for task in Task]
    return tuple(sorted(every, key=lambda metric: tasks.index(metric.task)))


def tasks_of_benchmarks() -> dict[str, str]:
    """Return benchmark -> key of the task that it scores."""
    return {metric.benchmark: metric.task for metric in headlines()}


def metric_named(name: str) -> Metric:
    """Return the metric called "benchmark" (its headline metric) or "benchmark/metric".

    Raises:
        ValueError: there is no such benchmark.
    """
    benchmark, _, metric = name.partition("/")
    first = next((one for one in headlines() if one.benchmark == benchmark), None)
    if first is None:
        known = ", ".join(dict.fromkeys(one.benchmark for one in headlines()))
        raise ValueError(f"{name!r} names no metric: benchmarks are {known}; write BENCHMARK or BENCHMARK/METRIC")
    listed = next((one for one in headlines() if (one.benchmark, one.metric) == (benchmark, metric or first.metric)), None)
    return listed or Metric(benchmark, metric, f"{first.title} {metric.replace('_', ' ')}", first.task, first.unit)
