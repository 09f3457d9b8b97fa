"""Benchmarks by name: how each is opened, and the metrics that reports show of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unidecouple import plugins
from unidecouple.batch import LANGUAGE
from unidecouple.eval.benchmark import AnyBenchmark, Metric

TEST_SEED: Final = 71
"""Of synthetic test sets and generated images, as runs are scored."""

_LOSSES: Final = (
    Metric("answers", "log_probability", "Held-out answers", "mmu", "nats"),
    Metric("text", "log_probability", "Held-out text", LANGUAGE, "nats"),
    Metric("image_tokens", "log_probability", "Held-out image tokens", "t2i", "nats"),
)
"""Validation losses of runs on files; not benchmarks."""


@dataclass(frozen=True)
class SyntheticSizes:
    """Sizes of the synthetic benchmarks.

    Attributes:
        pope_images: scenes of POPE.
        vqa_questions: questions of each kind.
        prompts_per_tag: prompts of each GenEval tag (102 exist).
        num_images: images per prompt, of published prompts too.
        edits_per_kind: edits of each kind.
        visual_cot_questions: questions of each kind of edit, one image each.
    """

    pope_images: int = 100
    vqa_questions: int = 200
    prompts_per_tag: int = 102
    num_images: int = 4
    edits_per_kind: int = 60
    visual_cot_questions: int = 120


@dataclass(frozen=True)
class BenchmarkOptions:
    """Which questions and prompts a benchmark has.

    Attributes:
        data: folder of published files; None opens synthetic benchmarks.
        limit: number of items of each part (POPE split, MMMU subject, MME subtask, GenEval tag, all of VQA; of a synthetic
            benchmark: scenes, questions per kind, prompts per tag).
        seed: of synthetic scenes.
        parsers: names of parsers, each of one benchmark.
        sizes: of synthetic benchmarks.
        art: folder of other drawings for synthetic images.
    """

    data: Path | None = None
    limit: int | None = None
    seed: int = 0
    parsers: tuple[str, ...] = ()
    sizes: SyntheticSizes = SyntheticSizes()
    art: Path | None = None

    def folder(self, name: str) -> Path:
        """Return ``data``.

        Raises:
            ValueError: it is None, and the benchmark called ``name`` needs files.
        """
        if self.data is None:
            raise ValueError(f"{name} has no synthetic form: give the folder of its published files with --data")
        return self.data

    def limited(self, size: int) -> int:
        """Return the smaller of ``size`` and ``limit``."""
        return size if self.limit is None else min(size, self.limit)

    def parser(self, known: Iterable[str], default: str) -> str:
        """Return the one of ``parsers`` that is among ``known``, else ``default``.

        Raises:
            ValueError: several are.
        """
        mine = [name for name in self.parsers if name in set(known)]
        if len(mine) > 1:
            raise ValueError(f"--parser names {' and '.join(mine)}, which are of one benchmark: choose one")
        return mine[0] if mine else default


@dataclass(frozen=True)
class Benchmark:
    """A benchmark by name; its line in ``plugins.BENCHMARKS`` makes it known to evaluation, comparison and reports.

    Attributes:
        name: in score rows and on the command line.
        metrics: shown by reports unless a recipe names others, the headline metric first.
        open: its questions or prompts.
        parsers: names of ways to read answers; ``BenchmarkOptions.parsers`` chooses.
    """

    name: str
    metrics: tuple[Metric, ...]
    open: Callable[[BenchmarkOptions], AnyBenchmark]
    parsers: tuple[str, ...] = ()


@functools.cache
def benchmarks() -> dict[str, Benchmark]:
    """Return every benchmark by name."""
    return {name: plugins.found(plugins.BENCHMARKS, name) for name in plugins.BENCHMARKS}


def open_benchmarks(names: Sequence[str], options: BenchmarkOptions) -> list[AnyBenchmark]:
    """Open the benchmarks called ``names``, in order; without ``options.data`` their synthetic forms.

    Raises:
        ValueError: an unknown name or parser, a limit below 1, or files that are missing or broken.
    """
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"limit is {options.limit}; it must be at least 1")
    known = benchmarks()
    for name in names:
        if name not in known:
            raise ValueError(f"unknown benchmark {name!r}; known: {', '.join(known)}")
    parsers = {one.metrics[0].title: one.parsers for one in known.values() if one.parsers}
    for parser in options.parsers:
        if not any(parser in some for some in parsers.values()):
            there = "; ".join(f"{title} has {', '.join(some)}" for title, some in parsers.items())
            raise ValueError(f"unknown parser {parser!r}; {there}")
    synthetic = plugins.SYNTHETIC_BENCHMARKS if options.data is None else {}
    opened = [plugins.found(synthetic, name) if name in synthetic else known[name] for name in names]
    return [benchmark.open(options) for benchmark in opened]


@functools.cache
def headlines() -> tuple[Metric, ...]:
    """Return the metrics that reports show of each benchmark unless a recipe names others, in their order (``Metric.rank``)."""
    every = [metric for benchmark in benchmarks().values() for metric in benchmark.metrics] + [*_LOSSES]
    return tuple(sorted(every, key=lambda metric: metric.rank))


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
