"""POPE's published files: ``coco_pope_{random,popular,adversarial}.json`` or LLaVA's ``llava_pope_test.jsonl``, and pictures.

Scored by the rules of the official ``evaluate.py`` (AoiDragon/POPE) or another of ``pope.PARSERS``, per split and over all.
Positives stand in all three splits with the same words and are asked once. Pooled metrics are over all questions of all splits.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unidecouple.eval.benchmark import Answers, Metric, Query, Quiz, Report, Score
from unidecouple.eval.pope import PARSERS, known_parser, measure_answers, rows, settle
from unidecouple.eval.records import Row, read_records
from unidecouple.eval.sources import Pictures, find, hashes
from unidecouple.eval.statistics import Share
from unidecouple.eval.suite import Benchmark, Options
from unidecouple.files import write_text_atomic

_FILE = re.compile(r"(?P<data>\w+?)_pope_(?:seem_)?(?P<split>random|popular|adversarial)\.jsonl?")
_PATTERNS = ("coco/*_pope_*.json", "*_pope_*.json", "*_pope_*.jsonl")
_LLAVA = "llava_pope_test.jsonl"


@dataclass(frozen=True)
class Line:
    """A question of a split, as the files have it; ``label`` is "yes" or "no" (see ``records.yes_no``), ``where`` file and line."""

    split: str
    image: str
    text: str
    label: str
    where: str = ""

    @property
    def id(self) -> str:
        """What makes two lines the same question: picture and words."""
        return f"{self.image} {self.text}"


def open_quiz(data: Path, parser: str, limit: int | None = None) -> Quiz:
    """The quiz of the files in ``data``; with ``limit`` of the first so many questions of each split.

    Raises:
        ValueError: unknown parser; no files, a broken line, or a missing picture.
    """
    known_parser(parser)
    paths = find(data, "pope", (*_PATTERNS, _LLAVA))
    labelled = [path for path in paths if path.name != _LLAVA]
    lines = [line for path in labelled for line in _published(path)]
    for path in paths:
        if path.name == _LLAVA:
            lines = _as_llava_asks(path, lines)
    lines = _first(lines, limit)
    pictures = Pictures(paths[0].parent, paths[0].parent.parent, data)
    queries = {line.id: line for line in lines}
    return Quiz(
        "pope",
        tuple(Query(line.id, line.text, pictures(line.image, line.where), line.where) for line in queries.values()),
        functools.partial(report, lines, parser),
        parser,
        hashes(paths, data),
        functools.partial(_export, lines),
    )


def report(lines: Sequence[Line], parser: str, answers: Answers) -> Report:
    """Scores of ``answers`` (by ``Line.id``), and "accuracy/always yes", the pooled accuracy of a model that says only that."""
    rules = PARSERS[parser]
    splits = list(dict.fromkeys(line.split for line in lines))
    groups = {"": list(lines)} | {f"/{split}": [line for line in lines if line.split == split] for split in splits}
    scores: list[Score] = []
    shares: dict[str, Share] = {}
    for suffix, group in groups.items():
        given = [answers[line.id] for line in group]
        scores += rows(measure_answers([line.label for line in group], given, rules), suffix, parser)
        shares[f"accuracy{suffix}"] = Share.of((line.image, float(settle(answers[line.id], rules) == line.label)) for line in group)
    yes = sum(line.label == "yes" for line in lines) / len(lines)
    scores.append(Score("pope", "accuracy/always yes", yes, parser, 1.0, 0.5))
    return Report(tuple(scores), shares, {"unparsed": sum(rules.read(answer) == "unknown" for answer in answers.values())})


def _published(path: Path) -> list[Line]:
    match = _FILE.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is not named as POPE's files are: coco_pope_random.json, …_popular.json, …_adversarial.json")
    rows_of = read_records(path, ("image", "text", "label"))
    lines = [_line(match["split"], row, row.yes_no("label")) for row in rows_of]
    first: dict[str, Line] = {}
    for line in lines:
        other = first.setdefault(line.id, line)
        if other.label != line.label:
            raise ValueError(f"{line.where}: the question of {other.where}, labelled {line.label!r} here and {other.label!r} there")
    return lines


def _line(split: str, row: Row, label: str) -> Line:
    return Line(split, row.text("image"), row.text("text"), label, row.where)


def _as_llava_asks(path: Path, labelled: Sequence[Line]) -> list[Line]:
    """The lines of LLaVA's file, whose words ask for a single word.

    Labels come from the splits' own files, in order, as its ``eval_pope.py`` pairs them.
    """
    asked: list[Line] = []
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


def _first(lines: Sequence[Line], limit: int | None) -> list[Line]:
    seen: Counter[str] = Counter()
    kept = []
    for line in lines:
        if limit is None or seen[line.split] < limit:
            kept.append(line)
        seen[line.split] += 1
    return kept


def _export(lines: Sequence[Line], answers: Answers, folder: Path) -> None:
    """A file a split as ``evaluate.py`` reads it: {"question", "answer"}, in the order of the labels."""
    for split in dict.fromkeys(line.split for line in lines):
        said = [{"question": line.text, "answer": answers[line.id]} for line in lines if line.split == split]
        write_text_atomic(folder / f"pope_{split}.jsonl", "".join(json.dumps(row) + "\n" for row in said))


def _open(data: Path, options: Options) -> Quiz:
    return open_quiz(data, options.parser(PARSERS, "official"), options.limit)


BENCHMARK: Final = Benchmark("pope", (Metric("pope", "accuracy", "POPE", "mmu"),), _open, tuple(PARSERS))
