"""Score a model on benchmarks."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from unidecouple.api.checkpoints import DType
from unidecouple.api.training import PathLike, print_at_once
from unidecouple.convert.load import checkpoint_folder
from unidecouple.convert.load import load as load_model
from unidecouple.eval.benchmark import BenchmarkResult, GenerationBenchmark
from unidecouple.eval.card import EvalSetup, intervals, weights_of
from unidecouple.eval.model import EvalModel
from unidecouple.eval.scores_file import SCORES, write_scores
from unidecouple.eval.session import Blind, EvalSession
from unidecouple.eval.suite import TEST_SEED, BenchmarkOptions, SyntheticSizes, open_benchmarks
from unidecouple.generate.sampling import image_sampling
from unidecouple.ownership import check_file
from unidecouple.shares import WorkShare, share_of_environment
from unidecouple.source import PrintLine
from unidecouple.train.launch import processes
from unidecouple.train.parallel import Parallel

_PROGRESS_EVERY = 5.0  # seconds
_SHOWN = 12
_WORLD_TOKENS, _FILES_TOKENS = 6, 32
"""Longest answers: as training scores the synthetic benchmarks, and enough for an option's text."""


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """How a model is scored.

    Attributes:
        limit: items per split, subject, subtask or tag; None for all.
        seed: of synthetic scenes and generated images; None for the seed that runs are scored with.
        device: "auto", "cpu" or "cuda".
        dtype: of the weights.
        parser: how answers are read, by name.
        blind: also ask about a "grey" image in place of each, or with "text" alone.
        score_only: score what is in the folder; no model is loaded.
        detections: what a detector saw, for GenEval.
        art: draw the synthetic questions with these emoji (PNG files by code point).
        batch_size: questions asked together.
        max_new_tokens: longest answer; None for 6 on the synthetic benchmark, else 32.
        num_images: images per prompt.
        guidance_scale, temperature, top_k, top_p: sampling of images; None is the checkpoint's.
        print_line: gets progress and the first scores.
    """

    limit: int | None = None
    seed: int | None = None
    device: str = "auto"
    dtype: DType = "float32"
    parser: Sequence[str] = ()
    blind: Sequence[Blind] = ()
    score_only: bool = False
    detections: Path | None = None
    art: Path | None = None
    batch_size: int = 32
    max_new_tokens: int | None = None
    num_images: int = 4
    guidance_scale: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    print_line: PrintLine = print_at_once


def evaluate(
    model: PathLike, benchmarks: Sequence[str], output: PathLike, data: PathLike | None = None, options: EvalOptions | None = None
) -> dict[str, BenchmarkResult | None]:
    """Score a model on benchmarks: answers and images are written as they come, then scored; a rerun continues.

    Args:
        model: a checkpoint's folder in any layout, a run's folder, a Hub id, or a shipped base.
        benchmarks: names: pope, vqa, geneval, mmmu, mme, language.
        output: folder of answers, images and score cards.
        data: folder of the published files; None for the synthetic benchmark.
        options: see ``EvalOptions``.

    Returns:
        The result of each benchmark by name; None where images wait for a file of detections. Tasks of a Slurm job array divide
        the questions; a benchmark that other tasks still work on is left out.

    Raises:
        ValueError: a benchmark or its files are missing, or ``output`` is of another model or other settings.
    """
    chosen, folder, name = options or EvalOptions(), Path(output), os.fspath(model)
    check_file(folder / SCORES)
    opened = open_benchmarks(list(benchmarks), _benchmark_options(benchmarks, data, chosen))
    results: dict[str, BenchmarkResult | None] = {}
    with processes(chosen.device, bf16=False, kind="ddp") as place:
        scored, setup = _model(name, data is None, chosen, place)
        share = _share(place)
        progress = _progress(chosen.print_line) if place.first else lambda what, done, of: None
        session = EvalSession(folder, setup, chosen.batch_size, tuple(chosen.blind), share, progress)
        for benchmark in opened:
            if scored is not None:
                session.run(benchmark, scored)
            if share.independent and (lacking := session.lacks(benchmark)):
                chosen.print_line(
                    f"{benchmark.name}: share {share.rank + 1} of {share.size} is done; {lacking} answers or prompts of other "
                    "shares are missing. The last share scores; so does the same command with --score-only"
                )
            elif place.first:
                detections = chosen.detections if isinstance(benchmark, GenerationBenchmark) else None
                result = results[benchmark.name] = session.score(benchmark, detections)
                _show(benchmark.name, result, session.folder(benchmark), chosen.print_line)
        if place.first and len(results) == len(opened):
            write_scores(folder, name)
    return results


def _benchmark_options(benchmarks: Sequence[str], data: PathLike | None, chosen: EvalOptions) -> BenchmarkOptions:
    if chosen.art is not None and (data is not None or "geneval" in benchmarks):
        raise ValueError("--art draws the synthetic questions only: leave out --data, and geneval among the benchmarks")
    files, seed = None if data is None else Path(data), TEST_SEED if chosen.seed is None else chosen.seed
    return BenchmarkOptions(
        files, chosen.limit, seed, tuple(chosen.parser), SyntheticSizes(num_images=chosen.num_images), chosen.art
    )


def _model(name: str, synthetic: bool, chosen: EvalOptions, place: Parallel) -> tuple[EvalModel | None, EvalSetup]:
    """The model, unless only files are scored, and what the card records about it."""
    if chosen.score_only:
        return None, EvalSetup(name, {}, {}, chosen.dtype, str(place.device))
    tokens = chosen.max_new_tokens or (_WORLD_TOKENS if synthetic else _FILES_TOKENS)
    seed = TEST_SEED if chosen.seed is None else chosen.seed
    model, processor = load_model(name, getattr(torch, chosen.dtype))
    given = {key: getattr(chosen, key) for key in ("guidance_scale", "temperature", "top_k", "top_p")}
    sampling = image_sampling(model.generation_config).override(**given)
    settings = {"seed": seed, "max_new_tokens": tokens, **dataclasses.asdict(sampling)}
    weights = weights_of(checkpoint_folder(name)) if place.first else {}
    setup = EvalSetup(name, weights, settings, chosen.dtype, str(place.device))
    return EvalModel(model.to(place.device), processor, tokens, sampling, seed), setup


def _share(place: Parallel) -> WorkShare:
    """Torchrun's processes wait for each other; those of a Slurm job array or of srun do not."""
    if place.size == 1:
        return share_of_environment()
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        raise ValueError("eval shares its work in a job array or by torchrun, not both: start one process per task of the array")
    return WorkShare(place.rank, place.size, dist.barrier)


def _progress(print_line: PrintLine) -> Callable[[str, int, int], None]:
    """A line every few seconds, and one at each end."""
    last = [0.0]

    def show(what: str, done: int, of: int) -> None:
        if done == of or time.monotonic() - last[0] > _PROGRESS_EVERY:
            last[0] = time.monotonic()
            print_line(f"{what}: {done} of {of}")

    return show


def _show(name: str, result: BenchmarkResult | None, folder: Path, print_line: PrintLine) -> None:
    """Print the first rows."""
    if result is None:
        print_line(
            f"{name}: images are in {folder / 'images'}; detect what they show and score with --score-only --detections FILE"
        )
        return
    ends = intervals(result)
    for row in result.scores[:_SHOWN]:
        low, high = ends.get(row.metric, (None, None))
        between = "" if low is None or high is None else f"  ({low:.3f} to {high:.3f})"
        print_line(f"{name} {row.metric}: {row.value:.3f}{between}")
    unread = ", ".join(f"{count} {kind}" for kind, count in result.failures.items() if count)
    print_line(f"{name}: {unread or 'everything was read'}; all rows in {folder / 'card.md'}")
