"""An evaluation of one model: answers and images are written as they come; scores and cards follow from the files alone.

``OUTPUT/<benchmark>/`` holds ``settings.json`` (what answers depend on; another model or setting is refused), ``answers.*.jsonl``
or ``images/``, ``official/`` (answers in the benchmark's own form), ``card.json`` and ``card.md``. A ``VisualCotBenchmark`` has
images and ``answers-<condition>.*.jsonl``; a job array needs a second run for those that depend on other shares' images.
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

from unidecouple.eval.answering import AskBatch, Progress, collect, complete, read_answers
from unidecouple.eval.benchmark import (
    NONE,
    Answers,
    AnyBenchmark,
    BenchmarkResult,
    GenerationBenchmark,
    Images,
    Picture,
    QABenchmark,
    Query,
    VisualCotBenchmark,
    generator,
)
from unidecouple.eval.card import EvalSetup, write_card
from unidecouple.eval.geneval import read_images
from unidecouple.eval.image_folder import generate_folder
from unidecouple.eval.model import EvalModel
from unidecouple.files import write_json_atomic
from unidecouple.shares import ALONE, WorkShare

SETTINGS: Final = "settings.json"
IMAGES: Final = "images"
Blind = Literal["grey", "text"]
"""How questions are asked blindly: about a grey image, or about none."""

BLIND: Final[tuple[Blind, ...]] = get_args(Blind)
_FILES: Final[dict[Blind, str]] = {"grey": "blind", "text": "blind-text"}
_TITLES: Final[dict[Blind, str]] = {"grey": "grey image", "text": "no image"}
_PROMPTS_AT_ONCE: Final = 16
_NEW: Final = ("pictures_sha256", "sources_sha256")
"""Settings that folders of earlier releases lack."""


def _kind(condition: str) -> str:
    """Name of the files with the answers under a condition of ``VisualCotBenchmark``, or of any other benchmark's."""
    return "answers" if condition == NONE else f"answers-{condition}"


@dataclass(frozen=True)
class EvalSession:
    """One evaluation of one model in a folder.

    Attributes:
        output: its folder.
        setup: what is scored; its settings are those of decoding and image generation.
        batch_size: questions asked together; answers do not depend on it.
        blind: also ask in these ways, which measure what the words alone are worth.
        share: this process among several.
        progress: called after every batch.
    """

    output: Path
    setup: EvalSetup
    batch_size: int = 32
    blind: tuple[Blind, ...] = ()
    share: WorkShare = ALONE
    progress: Progress = lambda what, done, of: None

    def run(self, benchmark: AnyBenchmark, model: EvalModel) -> None:
        """Have ``model`` answer the questions, or generate the images, that the folder lacks.

        Raises:
            ValueError: the folder holds those of another model or other settings, or the model cannot take a question or prompt.
        """
        blindly = {"grey": model.ask_grey, "text": model.ask_text}
        if isinstance(benchmark, GenerationBenchmark):
            model.check_prompts(benchmark.metadata, benchmark.sources)
            self._generate(benchmark, self._claim(benchmark), model)
            return
        if isinstance(benchmark, VisualCotBenchmark):
            generation = benchmark.generation
            model.check_prompts(generation.metadata, generation.sources)
            longest = benchmark.asked([shown[:1] for shown in generation.sources])
            model.check_queries([query for some in longest.values() for query in some])
            folder = self._claim(benchmark)
            self._generate(generation, folder, model)
            own = read_images(folder / IMAGES) if (folder / IMAGES).is_dir() else ()  # some may be another share's
            asked = {_kind(name): some for name, some in benchmark.asked(own).items()}
        else:
            model.check_queries(benchmark.queries)
            folder, asked = self._claim(benchmark), {_kind(NONE): benchmark.queries}
        for kind, queries in asked.items():
            self._ask(model.ask, queries, folder, kind)
        for way in () if any(query.picture is None for query in benchmark.queries) else self.blind:  # a passage has nothing to hide
            self._ask(blindly[way], benchmark.queries, folder, _FILES[way])

    def _ask(self, ask: AskBatch, queries: Sequence[Query], folder: Path, kind: str) -> None:
        collect(ask, queries, folder, self.batch_size, self.share, self.progress, kind)

    def _generate(self, benchmark: GenerationBenchmark, folder: Path, model: EvalModel) -> None:
        number = benchmark.num_images
        wanted = (generator(model, benchmark), benchmark.metadata, number, folder / IMAGES)
        generate_folder(*wanted, 4 * max(1, _PROMPTS_AT_ONCE // number), self.share, self.progress)

    def lacks(self, benchmark: AnyBenchmark) -> int:
        """How many answers, blind ones included, or prompts' images the folder still lacks."""
        folder, count = self.folder(benchmark), 0
        if not isinstance(benchmark, QABenchmark):
            images = folder / IMAGES
            found = {path.name for path in images.iterdir()} if images.is_dir() else set()
            generation = benchmark if isinstance(benchmark, GenerationBenchmark) else benchmark.generation
            count = sum(f"{number:05d}" not in found for number in range(len(generation.metadata)))
        if not isinstance(benchmark, GenerationBenchmark):
            conditions = benchmark.conditions if isinstance(benchmark, VisualCotBenchmark) else (NONE,)
            there = [read_answers(folder, kind) for kind in (*map(_kind, conditions), *(_FILES[way] for way in self.blind))]
            count += sum(query.id not in answers for answers in there for query in benchmark.queries)
        return count

    def score(self, benchmark: AnyBenchmark, detections: Path | None = None) -> BenchmarkResult | None:
        """Score what is in the folder and write the card; None where images wait for a file of ``detections``.

        Raises:
            ValueError: answers or images are missing, or are of other settings.
        """
        folder, setup = self._opened(benchmark)
        if not isinstance(benchmark, GenerationBenchmark):
            result = self._score_answers(benchmark, folder)
        elif detections is not None:
            if benchmark.read_detections is None:
                raise ValueError(f"{benchmark.name} reads no file of detections: leave out --detections")
            result = benchmark.read_detections(detections)
        elif benchmark.score is None:
            return None
        else:
            result = benchmark.score(self._images(benchmark, folder))
        write_card(folder, benchmark.name, result, setup, benchmark.files)
        return result

    def _score_answers(self, benchmark: QABenchmark | VisualCotBenchmark, folder: Path) -> BenchmarkResult:
        def found(kind: str) -> Answers:
            return complete(read_answers(folder, kind), benchmark.queries, folder)

        def score(answers: Answers) -> BenchmarkResult:
            return benchmark.score({NONE: answers}, ()) if isinstance(benchmark, VisualCotBenchmark) else benchmark.score(answers)

        if isinstance(benchmark, VisualCotBenchmark):
            own = self._images(benchmark.generation, folder)
            result = benchmark.score({name: found(_kind(name)) for name in benchmark.conditions}, own)
        else:
            result = score(answers := found(_kind(NONE)))
            if benchmark.export is not None:
                benchmark.export(answers, folder / "official")
        for way in BLIND:
            if read_answers(folder, _FILES[way]):
                result = _with_blind(result, score(found(_FILES[way])), _TITLES[way])
        return result

    def _images(self, benchmark: GenerationBenchmark, folder: Path) -> Images:
        """The images in ``folder``, of all prompts."""
        images, wanted = read_images(folder / IMAGES), len(benchmark.metadata)
        if len(images) != wanted:
            raise ValueError(f"{folder} has images of {len(images)} of {wanted} prompts: run the same command without --score-only")
        return images

    def folder(self, benchmark: AnyBenchmark) -> Path:
        """Folder of ``benchmark``."""
        return self.output / benchmark.name

    def _claim(self, benchmark: AnyBenchmark) -> Path:
        """The folder, marked as of this model and these settings; the first process writes, the others wait."""
        folder = self.folder(benchmark)
        setup = dataclasses.replace(self.setup, settings={**self.setup.settings, **_asked(benchmark)})
        if self.share.claims:
            there = (
                next((path.name for path in folder.iterdir() if not path.name.startswith(".")), None) if folder.is_dir() else None
            )
            if (folder / SETTINGS).is_file():
                _same(folder, setup, weights=True)
            else:
                if there is not None:
                    raise ValueError(f"{folder} holds {there}, but no {SETTINGS} of an evaluation: choose another --output")
                write_json_atomic(folder / SETTINGS, dataclasses.asdict(setup))
        self.share.wait()
        return folder

    def _opened(self, benchmark: AnyBenchmark) -> tuple[Path, EvalSetup]:
        """The folder, and what it says was scored."""
        folder = self.folder(benchmark)
        if not (folder / SETTINGS).is_file():
            raise ValueError(f"{folder} holds nothing to score: run the same command without --score-only")
        there = _settings(folder).settings
        return folder, _same(folder, dataclasses.replace(self.setup, settings={**there, **_asked(benchmark)}), weights=False)


def _same(folder: Path, setup: EvalSetup, weights: bool) -> EvalSetup:
    """The setup stored in ``folder``, if it equals ``setup`` in all that answers depend on."""
    there = _settings(folder)
    differ = [
        f"{key} {there.settings.get(key)!r}, not {value!r}"
        for key, value in setup.settings.items()
        if there.settings.get(key) != value and (key in there.settings or key not in _NEW)
    ]
    if weights and dict(there.weights) != dict(setup.weights):
        differ.insert(0, f"the weights of {there.checkpoint}")
    if weights and there.dtype != setup.dtype:
        differ.append(f"dtype {there.dtype}, not {setup.dtype}")
    if differ:
        raise ValueError(f"{folder} is of {'; '.join(differ)}: give another --output, or the same model and settings")
    return there


def _settings(folder: Path) -> EvalSetup:
    try:
        return EvalSetup(**json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / SETTINGS} is damaged ({error}): give another --output") from error


def _asked(benchmark: AnyBenchmark) -> Mapping[str, Any]:
    """What is asked, as hashes: ids and words, and the images' bytes."""
    if isinstance(benchmark, VisualCotBenchmark):
        return {**_asked(benchmark.generation), **_asked_of([query for some in benchmark.asked(()).values() for query in some])}
    if isinstance(benchmark, QABenchmark):
        return _asked_of(benchmark.queries)
    prompts = json.dumps(list(benchmark.metadata), sort_keys=True).encode()
    sources = [picture for shown in benchmark.sources for picture in shown]
    return {
        "prompts": len(benchmark.metadata),
        "prompts_sha256": hashlib.sha256(prompts).hexdigest(),
        "num_images": benchmark.num_images,
    } | ({"sources_sha256": _hash_of_pictures(sources)} if sources else {})


def _asked_of(queries: Sequence[Query]) -> Mapping[str, Any]:
    asked = {"questions": len(queries), "questions_sha256": _hash_of(queries)}
    stored = [one for query in queries for one in query.pictures if not isinstance(one, np.ndarray)]  # _hash_of has the others
    return asked | ({"pictures_sha256": _hash_of_pictures(stored)} if stored else {})


def _hash_of(queries: Sequence[Query]) -> str:
    digest = hashlib.sha256()
    for query in queries:
        digest.update(json.dumps([query.id, query.text, *query.choices]).encode())
        for picture in query.pictures:
            if isinstance(picture, np.ndarray):
                digest.update(picture.tobytes())
    return digest.hexdigest()


def _hash_of_pictures(pictures: Sequence[Picture]) -> str:
    """Of the images' bytes, stored ones once each."""
    whole = hashlib.sha256()
    for picture in (one for one in pictures if isinstance(one, np.ndarray)):
        whole.update(picture.tobytes())
    for picture in dict.fromkeys(one for one in pictures if not isinstance(one, np.ndarray)):
        whole.update(hashlib.sha256(picture.read()).digest())
    return whole.hexdigest()


def _with_blind(result: BenchmarkResult, blind: BenchmarkResult, title: str) -> BenchmarkResult:
    """``result`` and, for each row that is a proportion, the row of the same model asked blindly."""
    rows = [row for row in blind.scores if row.metric in blind.proportions]
    renamed = tuple(dataclasses.replace(row, metric=f"{row.metric} ({title})") for row in rows)
    proportions = {f"{metric} ({title})": proportion for metric, proportion in blind.proportions.items()}
    return dataclasses.replace(result, scores=result.scores + renamed, proportions={**result.proportions, **proportions})
