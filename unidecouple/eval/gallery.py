"""GenEval as painting and scoring apart: a list of prompts, a folder of pictures, and who judges them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unidecouple.eval.benchmark import Report, Score
from unidecouple.eval.geneval import Bounds, Metadata, Verdict, judge_pictures, read_folder, summarize
from unidecouple.eval.judges import Judge
from unidecouple.eval.judges.detections import read_verdicts
from unidecouple.eval.statistics import Share


@dataclass(frozen=True)
class Gallery:
    """Prompts to paint.

    Attributes:
        name: of the benchmark.
        metadata: GenEval's lines.
        num_images: pictures a prompt.
        judge: of the pictures; None where only a file of detections can judge them.
        bounds: computes ceiling and floor of ``judge``.
        files: what was read: name -> SHA-256.
    """

    name: str
    metadata: Sequence[Metadata]
    num_images: int
    judge: Judge | None = None
    bounds: Callable[[], Bounds] | None = None
    files: Mapping[str, str] = field(default_factory=dict)


def score_gallery(gallery: Gallery, pictures: Path, detections: Path | None) -> tuple[Report, str] | None:
    """The report on a folder of pictures and the judge's name; None where nobody can judge them yet.

    Args:
        gallery: what was asked for.
        pictures: folder in GenEval's layout.
        detections: see ``judges.detections``; None asks the gallery's own judge.

    Raises:
        ValueError: see ``read_folder`` and ``read_verdicts``.
    """
    if detections is not None:
        judged = read_verdicts(detections, gallery.metadata, gallery.num_images)
        failures = {"disagree with our rules": judged.disagree} if judged.judge == "official results" else {}
        return _report(judged.verdicts, judged.judge, None, failures), judged.judge
    if gallery.judge is None:
        return None
    metadata, images = read_folder(pictures)
    bounds = gallery.bounds() if gallery.bounds else None
    return _report(judge_pictures(gallery.judge, metadata, images), gallery.judge.name, bounds, {}), gallery.judge.name


def _report(verdicts: Sequence[Verdict], judge: str, bounds: Bounds | None, failures: Mapping[str, int]) -> Report:
    scores = tuple(
        Score("geneval", metric, value, judge, *((bounds.ceiling[metric], bounds.floor[metric]) if bounds else (None, None)))
        for metric, value in summarize(verdicts).items()
    )
    tags = dict.fromkeys(verdict.tag for verdict in verdicts)
    shares = {tag: Share.of((v.prompt, float(v.correct)) for v in verdicts if v.tag == tag) for tag in tags}
    shares["images"] = Share.of((v.prompt, float(v.correct)) for v in verdicts)
    by_prompt: dict[int, bool] = {}
    for verdict in verdicts:
        by_prompt[verdict.prompt] = by_prompt.get(verdict.prompt, False) or verdict.correct
    shares["prompts"] = Share.of((prompt, float(any_right)) for prompt, any_right in by_prompt.items())
    return Report(scores, shares, failures)
