"""Questions with short answers from files: VQAv2's own, or a plain ``vqa.jsonl`` of one's own.

VQAv2: ``v2_OpenEnded_mscoco_val2014_questions.json``, ``v2_mscoco_val2014_annotations.json`` and the images of COCO.
Plain: lines {"image", "question", "answer" or "answers"}, perhaps "question_id" and "kind", by which accuracy is split.
An answer is a text, a number, true or false ("yes" or "no"), or VQAv2's {"answer": …}; "answers" is one or a list, and wins.
Read by "exact" (any gold answer, after ``vqa_rules.normalize``) or "vqav2" (soft accuracy over all of them, see ``vqa_rules``).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unidecouple.eval.benchmark import Answers, BenchmarkResult, Metric, QABenchmark, Query, Score
from unidecouple.eval.records import BenchmarkRecord, read_listed, read_records, unique
from unidecouple.eval.sources import ImageFinder, find, hashes
from unidecouple.eval.statistics import ClusteredProportion
from unidecouple.eval.suite import Benchmark, BenchmarkOptions
from unidecouple.eval.vqa_rules import EXACT, normalize, soft_accuracy
from unidecouple.files import write_json_atomic

_PLAIN, _QUESTIONS = "vqa.jsonl", "*OpenEnded_*_questions.json"
_ONE_WORD = "\nAnswer the question using a single word or phrase."


def _exact(answer: str, gold: Sequence[str]) -> float:
    return float(normalize(answer) in {normalize(one) for one in gold})


MATCHES: Final[dict[str, Callable[[str, Sequence[str]], float]]] = {EXACT: _exact, "vqav2": soft_accuracy}
"""How an answer is compared with the gold ones, by name: a share of being right."""


@dataclass(frozen=True)
class VqaQuestion:
    """A question's id, its kind, its image's name, the gold answers (VQAv2 has ten people's), and file and line."""

    id: str
    kind: str
    image: str
    gold: tuple[str, ...]
    where: str = ""


def open_files(data: Path, match: str, limit: int | None = None) -> QABenchmark:
    """The benchmark of the files in ``data``; with ``limit`` the first so many questions.

    Raises:
        ValueError: unknown ``match``; no files, a broken line, a question without answers or image.
    """
    if match not in MATCHES:
        raise ValueError(f"unknown VQA parser {match!r}; known: {', '.join(MATCHES)}")
    paths = find(data, "vqa", (_PLAIN, _QUESTIONS))
    path = paths[0]
    if len(paths) > 1:
        raise ValueError(f"{path.parent} has {' and '.join(one.name for one in paths)}: leave the questions of one set there")
    pairs = (_plain(path) if path.name == _PLAIN else _vqav2(path))[:limit]
    pictures = ImageFinder(path.parent, data)
    queries = tuple(Query(item.id, text, pictures(item.image, item.where), item.where) for item, text in pairs)
    items = [item for item, _ in pairs]
    used = [path] if path.name == _PLAIN else [path, _annotations(path)]
    return QABenchmark(
        "vqa", queries, functools.partial(report, items, match), hashes(used, data), functools.partial(_export, items)
    )


def report(items: Sequence[VqaQuestion], match: str, answers: Answers) -> BenchmarkResult:
    """Accuracy over all and by kind; the floor is what the most frequent gold answer of the kind gets."""
    rules = MATCHES[match]
    kinds = sorted({item.kind for item in items})
    groups = {"accuracy": list(items)} | {f"accuracy/{kind}": [item for item in items if item.kind == kind] for kind in kinds}
    proportions = {
        metric: ClusteredProportion.of((item.image, rules(answers[item.id], item.gold)) for item in group)
        for metric, group in groups.items()
        if metric == "accuracy" or len(kinds) > 1
    }
    scores = []
    for metric, proportion in proportions.items():
        group = groups[metric]
        mode = Counter(answer for item in group for answer in item.gold).most_common(1)[0][0]
        scores.append(Score("vqa", metric, proportion.mean, match, 1.0, sum(rules(mode, item.gold) for item in group) / len(group)))
    return BenchmarkResult(tuple(scores), proportions, {"empty": sum(not answer.strip() for answer in answers.values())})


def _plain(path: Path) -> list[tuple[VqaQuestion, str]]:
    rows = read_records(path, ("image", "question"))
    names = [row.name("question_id") if row.has("question_id") else str(number) for number, row in enumerate(rows)]
    unique(rows, names, "question_id")
    pairs = []
    for row, name in zip(rows, names, strict=True):
        kind = row.name("kind") if row.has("kind") else "all"
        pairs.append((VqaQuestion(name, kind, row.text("image"), _gold(row), row.where), row.text("question")))
    return pairs


def _gold(row: BenchmarkRecord) -> tuple[str, ...]:
    key = next((name for name in ("answers", "answer") if row.has(name)), None)
    if key is None:
        row.fail("neither 'answer' nor 'answers' is given")
    given = row.listed(key) if isinstance(row[key], list) else [row[key]]
    return tuple(row.plain(key, one.get("answer") if isinstance(one, dict) else one) for one in given)


def _vqav2(path: Path) -> list[tuple[VqaQuestion, str]]:
    annotations = read_listed(_annotations(path), "annotations")
    unique(annotations, [row.name("question_id") for row in annotations], "question_id")
    gold = {row.name("question_id"): row for row in annotations}
    rows = read_listed(path, "questions")
    unique(rows, [row.name("question_id") for row in rows], "question_id")
    split = path.name.split("_mscoco_")[-1].split("_")[0]
    pairs = []
    for row in rows:
        name = row.name("question_id")
        if name not in gold:
            row.fail(f"question {name} has no annotation in {_annotations(path).name}")
        image = f"COCO_{split}_{row.count('image_id'):012d}.jpg"
        item = VqaQuestion(name, gold[name].text("answer_type"), image, _people(gold[name]), row.where)
        pairs.append((item, row.text("question") + _ONE_WORD))
    return pairs


def _people(row: BenchmarkRecord) -> tuple[str, ...]:
    """The answer of each of VQAv2's annotators; an empty one counts."""
    said = [one.get("answer") if isinstance(one, dict) else None for one in row.listed("answers")]
    if not all(isinstance(one, str) for one in said):
        row.fail("'answers' must be a list of objects with a text 'answer'")
    return tuple(map(str, said))


def _annotations(path: Path) -> Path:
    beside = path.with_name(path.name.replace("OpenEnded_", "").replace("_questions.json", "_annotations.json"))
    if not beside.is_file():
        raise ValueError(f"{path.name} is there, but {beside.name} is not: put VQAv2's annotations beside its questions")
    return beside


def _export(items: Sequence[VqaQuestion], answers: Answers, folder: Path) -> None:
    """The results file of VQA's evaluation server: [{"question_id", "answer"}]."""
    rows = [{"question_id": int(item.id) if item.id.isdigit() else item.id, "answer": answers[item.id]} for item in items]
    write_json_atomic(folder / "vqa_results.json", rows)


def _open(options: BenchmarkOptions) -> QABenchmark:
    return open_files(options.folder("vqa"), options.parser(MATCHES, EXACT), options.limit)


BENCHMARK: Final = Benchmark("vqa", (Metric("vqa", "accuracy", "VQA", "mmu"),), _open, tuple(MATCHES))
