"""POPE's published files: ``coco_pope_{random,popular,adversarial}.json`` or LLaVA's ``llava_pope_test.jsonl``, and images.

Scored by the rules of the official ``evaluate.py`` (AoiDragon/POPE) or another of ``pope.PARSERS``, per split and over all.
Positives stand in all three splits with the same words and are asked once. Pooled metrics are over all questions of all splits.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from unidecouple.eval.benchmark import Answers, BenchmarkResult, Metric, QABenchmark, Query, Score
from unidecouple.eval.pope import CHANCE, PARSERS, PopeQuestion, known_parser, score_pope
from unidecouple.eval.records import BenchmarkRecord, read_records
from unidecouple.eval.sources import ImageFinder, find, hashes
from unidecouple.eval.suite import Benchmark, BenchmarkOptions
from unidecouple.files import write_text_atomic

_FILE = re.compile(r"(?P<data>\w+?)_pope_(?:seem_)?(?P<split>random|popular|adversarial)\.jsonl?")
_PATTERNS = ("coco/*_pope_*.json", "*_pope_*.json", "*_pope_*.jsonl")
_LLAVA = "llava_pope_test.jsonl"


def open_files(data: Path, parser: str, limit: int | None = None) -> QABenchmark:
    """The benchmark of the files in ``data``; with ``limit`` of the first so many questions of each split.

    Raises:
        ValueError: unknown parser; no files, a broken line, or a missing image.
    """
    known_parser(parser)
    paths = find(data, "pope", (*_PATTERNS, _LLAVA))
    labelled = [path for path in paths if path.name != _LLAVA]
    lines = [line for path in labelled for line in _published(path)]
    for path in paths:
        if path.name == _LLAVA:
            lines = _as_llava_asks(path, lines)
    lines = _first(lines, limit)
    pictures = ImageFinder(paths[0].parent, paths[0].parent.parent, data)
    queries = {line.id: line for line in lines}
    return QABenchmark(
        "pope",
        tuple(Query(line.id, line.text, pictures(line.image, line.where), line.where) for line in queries.values()),
        functools.partial(_scored, lines, parser),
        hashes(paths, data),
        functools.partial(_export, lines),
    )


def _scored(questions: Sequence[PopeQuestion], parser: str, answers: Answers) -> BenchmarkResult:
    """Adds "accuracy/always yes", the pooled accuracy of a model that says only that."""
    yes = sum(question.label == "yes" for question in questions) / len(questions)
    return score_pope(questions, parser, answers, Score("pope", "accuracy/always yes", yes, parser, 1.0, CHANCE))


def _published(path: Path) -> list[PopeQuestion]:
    match = _FILE.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is not named as POPE's files are: coco_pope_random.json, …_popular.json, …_adversarial.json")
    rows_of = read_records(path, ("image", "text", "label"))
    lines = [_line(match["split"], row, row.yes_no("label")) for row in rows_of]
    first: dict[str, PopeQuestion] = {}
    for line in lines:
        other = first.setdefault(line.id, line)
        if other.label != line.label:
            raise ValueError(f"{line.where}: the question of {other.where}, labelled {line.label!r} here and {other.label!r} there")
    return lines


def _line(split: str, row: BenchmarkRecord, label: str) -> PopeQuestion:
    image, text = row.text("image"), row.text("text")
    return PopeQuestion(f"{image} {text}", split, image, text, label, row.where)


def _as_llava_asks(path: Path, labelled: Sequence[PopeQuestion]) -> list[PopeQuestion]:
    """The lines of LLaVA's file, whose words ask for a single word.

    Labels come from the splits' own files, in order, as its ``eval_pope.py`` pairs them.
    """
    asked: list[PopeQuestion] = []
    rows_of = read_records(path, ("image", "text", "category"))
    for split in dict.fromkeys(row.text("category") for row in rows_of):
        mine = [row for row in rows_of if row["category"] == split]
        labels = [line.label for line in labelled if line.split == split]
        if len(labels) != len(mine):
            raise ValueError(
                f"{path} asks {len(mine)} questions of split {split!r}, but {len(labels)} labels were found: "
                "put the coco_pope_*.json that came with it into coco/ beside it"
            )
        asked += [_line(split, row, label) for row, label in zip(mine, labels, strict=True)]
    return asked


def _first(lines: Sequence[PopeQuestion], limit: int | None) -> list[PopeQuestion]:
    seen: Counter[str] = Counter()
    kept = []
    for line in lines:
        if limit is None or seen[line.split] < limit:
            kept.append(line)
        seen[line.split] += 1
    return kept


def _export(lines: Sequence[PopeQuestion], answers: Answers, folder: Path) -> None:
    """One file per split, as ``evaluate.py`` reads it: {"question", "answer"}, in the order of the labels."""
    for split in dict.fromkeys(line.split for line in lines):
        said = [{"question": line.text, "answer": answers[line.id]} for line in lines if line.split == split]
        write_text_atomic(folder / f"pope_{split}.jsonl", "".join(json.dumps(row) + "\n" for row in said))


def _open(options: BenchmarkOptions) -> QABenchmark:
    return open_files(options.folder("pope"), options.parser(PARSERS, "official"), options.limit)


BENCHMARK: Final = Benchmark("pope", (Metric("pope", "accuracy", "POPE", "mmu"),), _open, tuple(PARSERS))
