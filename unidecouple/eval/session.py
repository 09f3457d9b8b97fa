"""One evaluation of one model: answers and pictures first, as they come; scores and cards after, from the files alone.

``OUTPUT/<benchmark>/`` holds ``settings.json`` (what answers depend on; another model or setting is refused), ``answers.*.jsonl``
or ``images/``, ``official/`` (answers in the benchmark's own form), ``card.json`` and ``card.md``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np

from unidecouple.eval.answering import ALONE, Part, Progress, collect, complete, read_answers
from unidecouple.eval.benchmark import Query, Quiz, Report
from unidecouple.eval.card import Subject, write_card
from unidecouple.eval.gallery import Gallery, score_gallery
from unidecouple.eval.model import Judged
from unidecouple.eval.painting import paint_folder
from unidecouple.files import write_json_atomic

SETTINGS: Final = "settings.json"
IMAGES: Final = "images"
Blind = Literal["grey", "text"]
"""How questions are asked blindly: about a grey picture, or about none."""

BLIND: Final[tuple[Blind, ...]] = get_args(Blind)
_FILES: Final[dict[Blind, str]] = {"grey": "blind", "text": "blind-text"}
_TITLES: Final[dict[Blind, str]] = {"grey": "grey picture", "text": "no picture"}
_PROMPTS_AT_ONCE: Final = 16


@dataclass(frozen=True)
class Session:
    """Where an evaluation lies and how it goes.

    Attributes:
        output: its folder.
        subject: what is scored; its settings are those of decoding and drawing.
        batch_size: questions asked together; answers do not depend on it.
        blind: also ask in these ways, which tell what the words alone are worth.
        part: this process among several.
        progress: told of every batch.
    """

    output: Path
    subject: Subject
    batch_size: int = 32
    blind: tuple[Blind, ...] = ()
    part: Part = ALONE
    progress: Progress = lambda what, done, of: None

    def answer(self, quiz: Quiz, judged: Judged) -> None:
        """Put to the model what it has not answered yet.

        Raises:
            ValueError: the folder holds answers of another model or other settings.
        """
        judged.check_queries(quiz.queries)
        folder = self._claim(quiz)
        blindly = {"grey": judged.ask_grey, "text": judged.ask_text}
        asks = {"answers": judged.ask} | {_FILES[way]: blindly[way] for way in self.blind}
        for kind, ask in asks.items():
            collect(ask, quiz.queries, folder, self.batch_size, self.part, self.progress, kind)

    def paint(self, gallery: Gallery, judged: Judged) -> None:
        """Have the model paint what it has not painted yet; raises as ``answer``."""
        judged.check_prompts(gallery.metadata)
        folder = self._claim(gallery)
        per_block = max(1, _PROMPTS_AT_ONCE // gallery.num_images)
        paint_folder(judged.paint, gallery.metadata, gallery.num_images, folder / IMAGES, per_block * 4, self.part, self.progress)

    def score_quiz(self, quiz: Quiz) -> Report:
        """Score the answers in the folder and write the card.

        Raises:
            ValueError: answers are missing, or are of other settings.
        """
        folder, subject = self._opened(quiz)
        answers = complete(read_answers(folder), quiz.queries, folder)
        report = quiz.score(answers)
        for way in BLIND:
            blind = read_answers(folder, _FILES[way])
            if blind:
                report = _with_blind(report, quiz.score(complete(blind, quiz.queries, folder)), _TITLES[way])
        if quiz.export is not None:
            quiz.export(answers, folder / "official")
        write_card(folder, quiz.name, report, subject, quiz.parser, quiz.files)
        return report

    def score_gallery(self, gallery: Gallery, detections: Path | None) -> Report | None:
        """Judge the pictures in the folder and write the card; None where there is no judge yet. Raises as ``score_quiz``."""
        folder, subject = self._opened(gallery)
        judged = score_gallery(gallery, folder / IMAGES, detections)
        if judged is None:
            return None
        report, judge = judged
        write_card(folder, gallery.name, report, subject, judge, gallery.files)
        return report

    def folder(self, benchmark: Quiz | Gallery) -> Path:
        """Where everything of ``benchmark`` lies."""
        return self.output / benchmark.name

    def _claim(self, benchmark: Quiz | Gallery) -> Path:
        """The folder, marked as of this subject; the first process writes, the others wait."""
        folder = self.folder(benchmark)
        subject = dataclasses.replace(self.subject, settings={**self.subject.settings, **_asked(benchmark)})
        if self.part.rank == 0:
            if (folder / SETTINGS).is_file():
                _same(folder, subject, weights=True)
            else:
                if folder.is_dir() and (there := next(folder.iterdir(), None)) is not None:
                    raise ValueError(f"{folder} holds {there.name}, but no {SETTINGS} of an evaluation: choose another --output")
                write_json_atomic(folder / SETTINGS, dataclasses.asdict(subject))
        self.part.wait()
        return folder

    def _opened(self, benchmark: Quiz | Gallery) -> tuple[Path, Subject]:
        """The folder and the subject it tells of."""
        folder = self.folder(benchmark)
        if not (folder / SETTINGS).is_file():
            raise ValueError(f"{folder} holds nothing to score: run the same command without --score-only")
        there = _settings(folder).settings
        return folder, _same(folder, dataclasses.replace(self.subject, settings={**there, **_asked(benchmark)}), weights=False)


def _same(folder: Path, subject: Subject, weights: bool) -> Subject:
    """The subject that ``folder`` tells of, if it is ``subject`` in all that answers depend on."""
    there = _settings(folder)
    differ = [
        f"{key} {there.settings.get(key)!r}, not {value!r}"
        for key, value in subject.settings.items()
        if there.settings.get(key) != value and (key in there.settings or key != "pictures_sha256")  # earlier releases had none
    ]
    if weights and dict(there.weights) != dict(subject.weights):
        differ.insert(0, f"the weights of {there.checkpoint}")
    if weights and there.dtype != subject.dtype:
        differ.append(f"dtype {there.dtype}, not {subject.dtype}")
    if differ:
        raise ValueError(f"{folder} is of {'; '.join(differ)}: give another --output, or the same model and settings")
    return there


def _settings(folder: Path) -> Subject:
    try:
        return Subject(**json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / SETTINGS} is damaged ({error}): give another --output") from error


def _asked(benchmark: Quiz | Gallery) -> Mapping[str, Any]:
    """What is asked, as hashes: ids and words, and the pictures' bytes."""
    if isinstance(benchmark, Quiz):
        asked = {"questions": len(benchmark.queries), "questions_sha256": _hash_of(benchmark.queries)}
        return asked | ({"pictures_sha256": digest} if (digest := _hash_of_pictures(benchmark.queries)) else {})
    told = json.dumps(list(benchmark.metadata), sort_keys=True).encode()
    return {
        "prompts": len(benchmark.metadata),
        "prompts_sha256": hashlib.sha256(told).hexdigest(),
        "num_images": benchmark.num_images,
    }


def _hash_of(queries: Sequence[Query]) -> str:
    told = hashlib.sha256()
    for query in queries:
        told.update(json.dumps([query.id, query.text]).encode())
        if isinstance(query.picture, np.ndarray):
            told.update(query.picture.tobytes())
    return told.hexdigest()


def _hash_of_pictures(queries: Sequence[Query]) -> str | None:
    """Of the bytes of published pictures, each once; None where there are only generated ones, which ``_hash_of`` covers."""
    pictures = dict.fromkeys(query.picture for query in queries if not isinstance(query.picture, np.ndarray))
    if not pictures:
        return None
    whole = hashlib.sha256()
    for picture in pictures:
        whole.update(hashlib.sha256(picture.read()).digest())
    return whole.hexdigest()


def _with_blind(report: Report, blind: Report, title: str) -> Report:
    """``report`` and, for each row that is a share, the row of the same model asked blindly."""
    rows = [row for row in blind.scores if row.metric in blind.shares]
    told = tuple(dataclasses.replace(row, metric=f"{row.metric} ({title})") for row in rows)
    shares = {f"{metric} ({title})": share for metric, share in blind.shares.items()}
    return dataclasses.replace(report, scores=report.scores + told, shares={**report.shares, **shares})
