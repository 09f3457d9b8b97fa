"""GenEval as a benchmark: its published prompts, and the score of images that were generated for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from unidecouple.eval.benchmark import BenchmarkResult, GenerationBenchmark, Images, ImageVerdict, Metadata, Metric, Score
from unidecouple.eval.geneval import JudgeBounds, judge_pictures, summarize
from unidecouple.eval.geneval_prompts import METADATA, read_metadata
from unidecouple.eval.judges import Judge
from unidecouple.eval.judges.detections import OFFICIAL, read_verdicts
from unidecouple.eval.sources import find, hashes
from unidecouple.eval.statistics import ClusteredProportion, MeanOfProportions
from unidecouple.eval.suite import Benchmark, BenchmarkOptions


def geneval_benchmark(
    metadata: Sequence[Metadata],
    num_images: int,
    judge: Judge | None = None,
    bounds: Callable[[], JudgeBounds] | None = None,
    files: Mapping[str, str] | None = None,
) -> GenerationBenchmark:
    """The benchmark of the prompts ``metadata``; without ``judge`` only a file of detections can score it.

    ``bounds`` computes ceiling and floor of ``judge``.
    """

    def score(images: Images) -> BenchmarkResult:
        assert judge is not None
        return geneval_result(judge_pictures(judge, metadata, images), judge.name, bounds() if bounds else None)

    def read(path: Path) -> BenchmarkResult:
        judged = read_verdicts(path, metadata, num_images)
        result = geneval_result(judged.verdicts, judged.judge)
        official = judged.judge == OFFICIAL
        return replace(result, failures={"disagree with our rules": judged.disagree}) if official else result

    return GenerationBenchmark("geneval", metadata, num_images, score if judge else None, read, files or {})


def geneval_result(verdicts: Sequence[ImageVerdict], judge: str, bounds: JudgeBounds | None = None) -> BenchmarkResult:
    """The official summary (see ``summarize``) as score rows; prompts are the clusters of the intervals."""
    scores = tuple(
        Score("geneval", metric, value, judge, *((bounds.ceiling[metric], bounds.floor[metric]) if bounds else (None, None)))
        for metric, value in summarize(verdicts).items()
    )
    by_tag = {tag: [verdict for verdict in verdicts if verdict.tag == tag] for tag in dict.fromkeys(v.tag for v in verdicts)}
    proportions = {tag: _proportion(mine) for tag, mine in by_tag.items()}
    images = _proportion(verdicts)
    prompts = ClusteredProportion(tuple((float(any(cluster)),) for cluster in images.clusters))
    overall = MeanOfProportions(tuple(proportions.values()))
    return BenchmarkResult(scores, {**proportions, "images": images, "prompts": prompts, "overall": overall}, {}, tuple(verdicts))


def _proportion(verdicts: Sequence[ImageVerdict]) -> ClusteredProportion:
    return ClusteredProportion.of((verdict.prompt, float(verdict.correct)) for verdict in verdicts)


def _open(options: BenchmarkOptions) -> GenerationBenchmark:
    data = options.folder("geneval")
    paths = find(data, "geneval", (METADATA, f"prompts/{METADATA}"))
    return geneval_benchmark(read_metadata(paths[0], options.limit), options.sizes.num_images, files=hashes(paths[:1], data))


BENCHMARK: Final = Benchmark("geneval", (Metric("geneval", "overall", "GenEval", "t2i"),), _open)
