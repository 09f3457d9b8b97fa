"""Language modelling: the log-likelihood that a model gives to English passages, as it follows the BOS; no chat, no image.

Files: ``language/*.txt`` or ``*.txt``, passages separated by blank lines. Without files: 64 paragraphs (30 KB) of the Jargon File
4.4.7, which Debian's ``jargon-text`` ships, public domain. Our recipes do not train on them; a pretrained language model may have
read them, so compare a model with its own base only. Perplexities of different tokenizers do not compare, bits per byte do.

    log probability = (nats of all passages) / (tokens of all passages)
    perplexity      = exp(-log probability)
    bits per byte   = -(nats of all passages) / ln 2 / (UTF-8 bytes of all passages)
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final

from unidecouple.batch import LANGUAGE
from unidecouple.eval.benchmark import Answers, BenchmarkResult, Metric, QABenchmark, Query, Score
from unidecouple.eval.sources import find, hashes
from unidecouple.eval.statistics import RatioOfSums
from unidecouple.eval.suite import Benchmark, BenchmarkOptions

JUDGE: Final = "log-likelihood"
_BITS_OF_A_BYTE: Final = 8.0


def open_passages(data: Path | None, limit: int | None = None) -> QABenchmark:
    """The benchmark of the passages in ``data``, by default the shipped ones; with ``limit`` the first so many of each file.

    Raises:
        ValueError: there are none.
    """
    root = Path(str(files("unidecouple") / "assets")) if data is None else data
    paths = find(root, "language", ("*.txt",))
    queries = tuple(
        Query(f"{path.stem}/{number}", text, None, f"{path}, passage {number}")
        for path in paths
        for number, text in enumerate(read_passages(path)[:limit], 1)
    )
    if not queries:
        raise ValueError(f"{paths[0]} has no text: write passages separated by blank lines")
    read = {} if data is None else hashes(paths, root)  # as of synthetic questions, the queries' hash is enough
    return QABenchmark("language", queries, functools.partial(report, queries), read)


def report(queries: Sequence[Query], answers: Answers) -> BenchmarkResult:
    """Log probability per token, perplexity and bits per byte; the floor is what equally likely bytes get."""
    read = [_read(query, answers[query.id]) for query in queries]
    nats = RatioOfSums(tuple((total, float(tokens)) for total, tokens, _ in read))
    size = sum(len(query.text.encode()) for query in queries)
    tokens, mean = sum(one[1] for one in read), nats.mean
    floor = -_BITS_OF_A_BYTE * math.log(2) * size / tokens
    scores = (
        Score("language", "log_probability", mean, JUDGE, 0.0, floor),
        Score("language", "perplexity", _exp(-mean), JUDGE, 1.0, _exp(-floor)),
        Score("language", "bits_per_byte", -mean * tokens / math.log(2) / size, JUDGE, 0.0, _BITS_OF_A_BYTE),
    )
    return BenchmarkResult(scores, {"log_probability": nats}, {"unknown tokens": sum(one[2] for one in read)})


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # the largest power that a float holds


def read_passages(path: Path) -> list[str]:
    """Return the passages of a text file, which blank lines separate.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error.reason} at byte {error.start}") from error
    return [one.strip() for one in re.split(r"\n\s*\n", text) if one.strip()]


def _read(query: Query, answer: str) -> tuple[float, int, int]:
    """Nats, tokens and unknown tokens of a passage, as ``EvalModel.ask`` writes them."""
    try:
        nats, tokens, unknown = answer.split()
        found = float(nats), int(tokens), int(unknown)
    except ValueError as error:
        raise ValueError(f"{query.where}: {answer!r} is no log-likelihood, number of tokens and of unknown ones") from error
    if not math.isfinite(found[0]) or found[1] < 1:
        raise ValueError(f"{query.where}: {answer!r} is no finite log-likelihood of at least one token")
    return found


def _open(options: BenchmarkOptions) -> QABenchmark:
    return open_passages(options.data, options.limit)


_METRICS: Final = (Metric("language", "log_probability", "English text", LANGUAGE, "nats"),)
BENCHMARK: Final = Benchmark("language", _METRICS, _open)
