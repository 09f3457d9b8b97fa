"""MMMU's validation set (arXiv 2311.16502) from parquet files or ``save_to_disk`` folders, with both ways to treat failures.

Questions are worded as in the official ``configs/llava1.5.yaml``. Where an answer names no option, the official parser guesses
(seed 42); "accuracy" counts such answers as wrong, "accuracy/official" lets a seeded guess stand, and both come with their number.
As in the official runner a question is shown its first image; those with several are counted.
"""

from __future__ import annotations

import ast
import functools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from unidecouple.data.formats.record import ImageBytes, ImageFile
from unidecouple.eval.benchmark import Answers, BenchmarkResult, Metric, QABenchmark, Query, Score
from unidecouple.eval.mmmu_parser import open_is_right, read_choice, read_open
from unidecouple.eval.records import BenchmarkRecord, unique
from unidecouple.eval.sources import find, hashes, stored_image, table_rows
from unidecouple.eval.statistics import ClusteredProportion
from unidecouple.eval.suite import Benchmark, BenchmarkOptions
from unidecouple.files import write_json_atomic
from unidecouple.inputs import quoted

JUDGE = "official"
_GUESS_SEED = 42
_PATTERNS = ("*/validation-*.parquet", "validation-*.parquet", "*validation*.parquet", "*/dataset_info.json", "dataset_info.json")
_PICTURES = tuple(f"image_{number}" for number in range(1, 8))
_CHOICE, _OPEN = "multiple-choice", "open"
_LETTERS = 26
_ASK = {
    _CHOICE: "{}\n\n{}\n\nAnswer with the option's letter from the given choices directly.",
    _OPEN: "{}\n\nAnswer the question using a single word or phrase.",
}


@dataclass(frozen=True)
class MmmuQuestion:
    """A question: its id (``validation_Art_1``), options by letter (none if open), gold answers, and how many images it has."""

    id: str
    options: Mapping[str, str]
    gold: tuple[str, ...]
    pictures: int = 1

    @property
    def subject(self) -> str:
        """``Art`` of ``validation_Art_1``."""
        return "_".join(self.id.split("_")[1:-1])


def open_files(data: Path, limit: int | None = None) -> QABenchmark:
    """The benchmark of the rows in ``data``; with ``limit`` the first so many of each subject.

    Raises:
        ValueError: no files, rows without a column, two rows of one id, or a row without image, options or a gold answer.
    """
    paths = [path.parent if path.name == "dataset_info.json" else path for path in find(data, "mmmu", _PATTERNS)]
    rows = [
        (BenchmarkRecord(f"{path}, row {number}", row), path) for path in paths for number, row in enumerate(table_rows(path), 1)
    ]
    if not rows:
        raise ValueError(f"{paths[0]} has no rows: is the download whole?")
    read = [_read(row, path) for row, path in rows]
    unique([row for row, _ in rows], [item.id for item, _ in read], "id")
    items, queries, seen = [], [], Counter[str]()
    for item, query in read:
        seen[item.subject] += 1
        if limit is None or seen[item.subject] <= limit:
            items.append(item)
            queries.append(query)
    return QABenchmark(
        "mmmu", tuple(queries), functools.partial(report, items), hashes(paths, data), functools.partial(_export, items)
    )


def report(items: Sequence[MmmuQuestion], answers: Answers) -> BenchmarkResult:
    """Accuracy with failures wrong, and with guesses in their place, over all and by subject."""
    guess = random.Random(_GUESS_SEED)
    right, official, unparsed = [], [], 0
    for item in items:
        if item.options:
            letter = read_choice(answers[item.id], item.options)
            unparsed += letter is None
            right.append(float(letter in item.gold))
            official.append(float((letter or guess.choice(list(item.options))) in item.gold))
        else:
            right.append(float(open_is_right(item.gold, read_open(answers[item.id]))))
            official.append(right[-1])
    chance = sum(1 / len(item.options) for item in items if item.options) / len(items)
    subjects = sorted({item.subject for item in items})
    proportions = {
        "accuracy": ClusteredProportion.of(enumerate(right)),
        "accuracy/official": ClusteredProportion.of(enumerate(official)),
    }
    for subject in subjects:
        proportions[f"accuracy/{subject}"] = ClusteredProportion.of(
            (n, right[n]) for n, item in enumerate(items) if item.subject == subject
        )
    floors = {"accuracy": chance, "accuracy/official": chance}
    scores = [Score("mmmu", metric, one.mean, JUDGE, 1.0, floors.get(metric)) for metric, one in proportions.items()]
    scores.append(Score("mmmu", "accuracy/most frequent answer", _most_frequent(items), JUDGE, 1.0, chance))
    several = sum(item.pictures > 1 for item in items)
    return BenchmarkResult(
        tuple(scores), proportions, {"no option named": unparsed, "questions shown one of several images": several}
    )


def _read(row: BenchmarkRecord, path: Path) -> tuple[MmmuQuestion, Query]:
    for column in ("id", "question", "options", "answer", "question_type", _PICTURES[0]):
        if column not in row.values:
            raise ValueError(f"{path} has no column {column!r}: give MMMU's own files, unchanged")
    name, question, kind = row.name("id"), row.text("question"), row["question_type"]
    if kind not in _ASK:
        row.fail(f"'question_type' is {quoted(kind)}; MMMU has {' and '.join(_ASK)}")
    options = _options(row) if kind == _CHOICE else {}
    shown = [stored for column in _PICTURES if (stored := row.values.get(column))]
    if not shown:
        row.fail(f"{name} has no image")
    picture: ImageBytes | ImageFile = stored_image(shown[0], f"{row.where}: {name}", path.parent)
    listed = "\n".join(f"({letter}) {text}" for letter, text in options.items())
    text = _ASK[_CHOICE].format(question, listed) if options else _ASK[_OPEN].format(question)
    return MmmuQuestion(name, options, _gold(row, options), len(shown)), Query(name, text, picture, row.where)


def _options(row: BenchmarkRecord) -> dict[str, str]:
    texts = _listed(row["options"])
    if not 2 <= len(texts) <= _LETTERS:
        row.fail(f"'options' is {quoted(row['options'])}; give a list of 2 to {_LETTERS}")
    return {chr(ord("A") + number): str(text) for number, text in enumerate(texts)}


def _gold(row: BenchmarkRecord, options: Mapping[str, str]) -> tuple[str, ...]:
    """An open question's answers; of a choice the letter, which may be written "(B)", "b" or "B."; numbers are no letters."""
    given = _listed(row["answer"]) or [row["answer"]]
    if not options:
        return tuple(row.plain("answer", one) for one in given)
    letters = tuple(str(one).strip().strip("().").upper() for one in given)
    if not all(letter in options for letter in letters):
        row.fail(f"'answer' is {quoted(row['answer'])}, but the options are {', '.join(options)}: give the letter of the right one")
    return letters


def _listed(value: Any) -> list[Any]:
    """MMMU writes lists as Python's text; a text that is none is no list."""
    if isinstance(value, list):
        return value
    text = str(value).strip()
    if not (text.startswith("[") and text.endswith("]")):
        return []
    try:
        return list(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return []


def _most_frequent(items: Sequence[MmmuQuestion]) -> float:
    """What always giving the most frequent letter reaches, open questions wrong: MMMU's own "frequent choice" baseline."""
    letters = Counter(item.gold[0] for item in items if item.options)
    return (letters.most_common(1)[0][1] if letters else 0) / len(items)


def _export(items: Sequence[MmmuQuestion], answers: Answers, folder: Path) -> None:
    """``total_val_output.json`` for ``main_eval_only.py``, and ``<Subject>/output.json`` for ``main_parse_and_eval.py``.

    The first holds letters; an answer that names none stays as the model gave it, which the official script counts as wrong.
    """
    total = {item.id: (read_choice(answers[item.id], item.options) if item.options else None) or answers[item.id] for item in items}
    write_json_atomic(folder / "total_val_output.json", total)
    for subject in sorted({item.subject for item in items}):
        rows: list[dict[str, object]] = []
        for item in items:
            if item.subject == subject:
                row: dict[str, object] = {"id": item.id, "question_type": _CHOICE if item.options else "short-answer"}
                row["answer"] = item.gold[0] if len(item.gold) == 1 else list(item.gold)
                if item.options:
                    row |= {"all_choices": list(item.options), "index2ans": dict(item.options)}
                rows.append({**row, "response": answers[item.id]})
        write_json_atomic(folder / subject / "output.json", rows)


def _open(options: BenchmarkOptions) -> QABenchmark:
    return open_files(options.folder("mmmu"), options.limit)


BENCHMARK: Final = Benchmark("mmmu", (Metric("mmmu", "accuracy", "MMMU", "mmu"),), _open)
