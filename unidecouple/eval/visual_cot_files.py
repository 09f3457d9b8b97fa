"""Generate-then-answer on files: the parts of UniG2U-Bench that are scored by short rules, RealUnify and ChartQA100.

Files, columns, prompts and rules are those of lmms-eval 0.7.3 (tasks/unig2u, MIT), which reads the tables of the dataset
``kkv233/unig2u_dataset``: ``chartqa100/chartqa100.parquet`` (image, question, answer) and ``realunify/realunify_<kind>.parquet``
(image, question, evaluation_prompt or prompt, answer). The tables themselves were not available; the readers were tested on small
ones with those columns. No true auxiliary image comes with them, so there is no such condition, and the wrong image is the model's
own of the next question. The other parts run in lmms-eval by our plug-in.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from unidecouple.data.formats.record import ImageBytes, ImageFile
from unidecouple.eval.benchmark import (
    NONE,
    ORACLE,
    OWN,
    WRONG,
    Answers,
    BenchmarkResult,
    GenerationBenchmark,
    Images,
    Metric,
    Query,
    VisualCotBenchmark,
)
from unidecouple.eval.records import BenchmarkRecord
from unidecouple.eval.sources import find, hashes, stored_image, table_rows
from unidecouple.eval.suite import Benchmark, BenchmarkOptions
from unidecouple.eval.visual_cot import NAME, CotItem, compare_conditions

_TABLES: Final = ("chartqa100.parquet", "realunify_*.parquet")
_PREFIXES: Final = (
    *("The best answer is", "The correct answer is", "The answer is", "The answer", "The best option is", "The correct option is"),
    *("Best answer:", "Best option:", "Answer", "Answer is"),
)
_GIVEN: Final = "In addition to the original {image}, you are also given {what}.\n\n"
_CHART: Final = (
    "Based on this chart and the question being asked, generate an annotated version of the chart that highlights the relevant "
    "data points, bars, lines, or regions needed to answer the question. Mark or circle the key values and label them clearly."
)


class _Kind(NamedTuple):
    """Of RealUnify: the prompt of the auxiliary image, and what it is called in the question."""

    prompt: str
    what: str


_REALUNIFY: Final = {
    "mental_reconstruction": _Kind(
        "Please restore the image that has been shuffled by patches, without adding extra content or altering the original image.",
        "a restored version of the shuffled image to help you answer the question",
    ),
    "attentional_focusing": _Kind(
        "Here is the question: {question}\nPlease highlight the regions of the image that are relevant to the question.",
        "a visualization that highlights the regions relevant to the question",
    ),
    "mental_tracking": _Kind(
        "Here is the question: {question}\nPlease apply the corresponding transformations and modifications to the contents of the "
        "image according to the question.",
        "a transformed version of the image with the modifications applied according to the question",
    ),
}


class _Read(NamedTuple):
    """A question as it is asked without and with the auxiliary image, and the prompt of that image."""

    item: CotItem
    picture: ImageBytes | ImageFile
    where: str
    text: str
    with_image: str
    prompt: str


def open_files(data: Path, limit: int | None = None) -> VisualCotBenchmark:
    """The benchmark of the tables in ``data``; with ``limit`` the first so many questions of each.

    Raises:
        ValueError: there are no tables, or one is of another part or lacks a column.
    """
    paths = find(data, "unig2u", [*_TABLES, *(f"*/{name}" for name in _TABLES)])
    read = [one for path in paths for one in _read_table(path, limit)]
    metadata = [{"tag": one.item.kind, "prompt": one.prompt} for one in read]
    generation = GenerationBenchmark(NAME, metadata, 1, None, sources=[(one.picture,) for one in read])
    queries = tuple(Query(one.item.id, one.text, one.picture, one.where) for one in read)
    score = functools.partial(_score, [one.item for one in read])
    return VisualCotBenchmark(NAME, queries, generation, score, {}, [one.with_image for one in read], hashes(paths, data))


def relaxed(answer: str, gold: str) -> bool:
    """ChartQA's relaxed correctness (arXiv 2203.10244, section 5.1): numbers within 5%, else equal texts in any letter case."""
    number, target = _number(answer.strip()), _number(gold)
    if number is not None and target:
        return abs(number - target) / abs(target) <= 0.05
    return answer.strip().lower() == gold.lower()


def letter(answer: str, gold: str) -> bool:
    """Whether the first capital A to D after RealUnify's lead-ins is ``gold``; a long answer without one is wrong."""
    rest = answer.strip()
    for prefix in _PREFIXES:
        rest = rest.replace(prefix, "")
    found = re.search(r"[ABCD]", rest)
    return (found.group() if found else "") == gold


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _read_table(path: Path, limit: int | None) -> list[_Read]:
    kind = path.stem.removeprefix("realunify_")
    if kind not in (*_REALUNIFY, "chartqa100"):
        raise ValueError(f"{path} is no table of this benchmark: of realunify_*.parquet there are {', '.join(_REALUNIFY)}")
    rows = [BenchmarkRecord(f"{path}, row {number}", row) for number, row in enumerate(table_rows(path), 1)]
    return [_read(kind, number, row, path) for number, row in enumerate(rows[:limit])]


def _read(kind: str, number: int, row: BenchmarkRecord, path: Path) -> _Read:
    picture = _image(row["image"], row.where, path.parent)
    question, name = row.text("question"), f"{kind}/{number}"
    if kind == "chartqa100":
        text = f"{question}\nAnswer the question with a single word."
        given = _GIVEN.format(image="chart", what="an annotated version that highlights the relevant data points for the question")
        return _Read(CotItem(name, kind, row.text("answer"), relaxed), picture, row.where, text, given + text, _CHART)
    asked = row.text("evaluation_prompt" if row.has("evaluation_prompt") else "prompt").strip()
    prompt, what = _REALUNIFY[kind]
    prompt = prompt.replace("{question}", question.strip())
    given = _GIVEN.format(image="image", what=what)
    return _Read(CotItem(name, kind, row.text("answer"), letter), picture, row.where, asked, given + asked, prompt)


def _image(cell: Any, where: str, folder: Path) -> ImageBytes | ImageFile:
    """An image as lmms-eval's readers accept it: plain bytes, or as ``datasets`` stores it."""
    return ImageBytes(cell) if isinstance(cell, bytes) and cell else stored_image(cell, where, folder)


def _score(items: list[CotItem], answers: Mapping[str, Answers], own: Images) -> BenchmarkResult:
    return compare_conditions(items, answers, "lmms-eval")


def _open(options: BenchmarkOptions) -> VisualCotBenchmark:
    return open_files(options.folder(NAME), options.limit)


_METRICS: Final = (
    Metric(NAME, f"accuracy/{OWN}", "Generate then answer", "mmu"),
    Metric(NAME, f"accuracy/{NONE}", "The same without auxiliary image", "mmu"),
    Metric(NAME, f"accuracy/{ORACLE}", "The same with the true image", "mmu"),
    Metric(NAME, f"accuracy/{WRONG}", "The same with a wrong image", "mmu"),
)
BENCHMARK: Final = Benchmark(NAME, _METRICS, _open)
