"""MME (arXiv 2306.13394) from its release folder: one folder per subtask, two questions per image, one yes and one no.

Scored as the official ``calculation.py``: a subtask's score is 100 times the share of right answers plus 100 times the share of
images with both right (accuracy+), at most 200, and Perception and Cognition are the sums of their subtasks. An answer is the
"yes" or "no" in its first four letters, in lower case ("know" is a no there); anything else is wrong, and counted.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unidecouple.eval.benchmark import Answers, BenchmarkResult, Metric, QABenchmark, Query, Score
from unidecouple.eval.records import read_text_lines, yes_no
from unidecouple.eval.sources import ImageFinder, find, hashes
from unidecouple.eval.statistics import ClusteredProportion
from unidecouple.eval.suite import Benchmark, BenchmarkOptions
from unidecouple.files import write_text_atomic

JUDGE: Final = "official"
GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "perception": ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
    "cognition": ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
}
_CHANCE: Final = 75.0
"""A coin's score: 50 of the single questions, 25 of the pairs."""
_ENDINGS: Final = (".jpg", ".png", ".jpeg", ".JPG", ".PNG")
_READ: Final = 4


@dataclass(frozen=True)
class MmeQuestion:
    """One question; ``image`` is the image's name without ending."""

    subtask: str
    image: str
    number: int
    text: str
    label: str

    @property
    def id(self) -> str:
        """``existence/000000006040/1``."""
        return f"{self.subtask}/{self.image}/{self.number}"


def read_label(answer: str) -> str:
    """One of "yes", "no" and "other", by the official rule, of the answer as ``_export`` writes it."""
    start = _one_line(answer).lower()[:_READ]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def open_files(data: Path, limit: int | None = None) -> QABenchmark:
    """The benchmark of the subtasks found in ``data``; with ``limit`` the first so many images of each.

    Raises:
        ValueError: none are found, a text file is not MME's, or an image is missing.
    """
    known = [name for names in GROUPS.values() for name in names]
    folders = find(data, "mme", [*known, *(f"MME_Benchmark_release_version/{name}" for name in known)])
    lines: list[MmeQuestion] = []
    queries: list[Query] = []
    files: list[Path] = []
    for folder in sorted(folders, key=lambda path: known.index(path.name)):
        texts = sorted((folder / "questions_answers_YN").glob("*.txt")) or sorted(folder.glob("*.txt"))
        pictures = ImageFinder(folder)
        for path in texts[:limit]:
            asked = _read(path, folder.name)
            picture = next((name for end in _ENDINGS for name in [path.stem + end] if _there(folder, name)), f"{path.stem}.jpg")
            shown = pictures(picture, str(path))
            lines += asked
            queries += [Query(line.id, line.text, shown, f"{path}:{line.number}") for line in asked]
            files.append(path)
    return QABenchmark(
        "mme", tuple(queries), functools.partial(report, lines), hashes(files, data), functools.partial(_export, lines)
    )


def report(lines: Sequence[MmeQuestion], answers: Answers) -> BenchmarkResult:
    """Sums by group, each subtask's score, accuracy and accuracy+, and what "yes" alone scores."""
    scores: list[Score] = []
    proportions: dict[str, ClusteredProportion] = {}
    for group, names in GROUPS.items():
        total, there = 0.0, 0
        for subtask in names:
            mine = [line for line in lines if line.subtask == subtask]
            if not mine:
                continue
            right = ClusteredProportion.of((line.image, float(read_label(answers[line.id]) == line.label)) for line in mine)
            both = ClusteredProportion(tuple((float(all(pair)),) for pair in right.clusters))
            proportions |= {f"accuracy/{subtask}": right, f"accuracy+/{subtask}": both}
            value = 100 * (right.mean + both.mean)
            scores.append(Score("mme", f"score/{subtask}", value, JUDGE, 200.0, _CHANCE))
            total, there = total + value, there + 1
        if there:
            scores.append(Score("mme", group, total, JUDGE, 200.0 * there, _CHANCE * there))
            yes = sum(50.0 for name in names if any(line.subtask == name for line in lines))
            scores.append(Score("mme", f"{group}/always yes", yes, JUDGE, 200.0 * there, _CHANCE * there))
    scores += [Score("mme", metric, one.mean, JUDGE, 1.0, 0.25 if "+" in metric else 0.5) for metric, one in proportions.items()]
    other = sum(read_label(answers[line.id]) == "other" for line in lines)
    return BenchmarkResult(tuple(scores), proportions, {"neither yes nor no": other})


def _read(path: Path, subtask: str) -> list[MmeQuestion]:
    rows = [(number, line.split("\t")) for number, line in read_text_lines(path)]
    labels = [yes_no(row[-1]) for _, row in rows]
    if any(len(row) != 2 or not row[0].strip() for _, row in rows) or {*labels} != {"yes", "no"} or len(rows) != 2:
        raise ValueError(f"{path} is not MME's: it needs two lines, question, tab and Yes or No, one of each")
    asked = zip(rows, labels, strict=True)
    return [
        MmeQuestion(subtask, path.stem, number, row[0].strip(), str(label)) for number, ((_, row), label) in enumerate(asked, 1)
    ]


def _one_line(answer: str) -> str:
    """White space of any kind and length becomes one space: the official file has one answer per line, fields separated by tabs."""
    return " ".join(answer.split())


def _there(folder: Path, name: str) -> bool:
    return (folder / "images" / name).is_file() or (folder / name).is_file()


def _export(lines: Sequence[MmeQuestion], answers: Answers, folder: Path) -> None:
    """One file per subtask, as ``calculation.py`` reads them: image, question, gold, answer; answers on one line."""
    for subtask in dict.fromkeys(line.subtask for line in lines):
        rows = [
            "\t".join((line.image, line.text, line.label.capitalize(), _one_line(answers[line.id])))
            for line in lines
            if line.subtask == subtask
        ]
        write_text_atomic(folder / f"{subtask}.txt", "".join(f"{row}\n" for row in rows))


def _open(options: BenchmarkOptions) -> QABenchmark:
    return open_files(options.folder("mme"), options.limit)


_METRICS: Final = (
    Metric("mme", "perception", "MME perception", "mmu", "points"),
    Metric("mme", "cognition", "MME cognition", "mmu", "points"),
)
BENCHMARK: Final = Benchmark("mme", _METRICS, _open)
