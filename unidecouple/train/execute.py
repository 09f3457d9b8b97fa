"""Runs one training run from its configuration to its scores, in a folder of its own; runs that finished are not run again."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from unidecouple import config as configs
from unidecouple.batch import Task
from unidecouple.convert.load import all_checkpoints, load, load_shapes
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.data.world.dataset import Progress
from unidecouple.diagnose.early_warning import early_warning
from unidecouple.eval.benchmark import tasks_of_benchmarks
from unidecouple.files import append_jsonl, write_json_atomic, write_text_atomic
from unidecouple.models.base import UnifiedModel
from unidecouple.models.processing import UnifiedProcessor
from unidecouple.run import RunConfig
from unidecouple.train import checkpoint as checkpoints
from unidecouple.train.batches import world_batches
from unidecouple.train.build import fit
from unidecouple.train.checkpoint import TrainerState
from unidecouple.train.held_out import HeldOut, held_out
from unidecouple.train.launch import processes
from unidecouple.train.lock import held
from unidecouple.train.loop import Say, Trainer, Watch
from unidecouple.train.measurements import LeftOut, Measured, measure_conflict, measure_interaction, measure_routing
from unidecouple.train.meter import Meter, Spent
from unidecouple.train.parallel import Parallel
from unidecouple.train.routing_log import ROUTING_LOG
from unidecouple.train.scoring import Scorer
from unidecouple.train.source import BatchSource, open_source
from unidecouple.train.subject import Subject
from unidecouple.train.trackers import Tracker, tracking

RUN, RESULT = "run.yaml", "scores.json"
_TEST_SIZES = tuple(f"evaluation.{name}:" for name in ("pope_images", "vqa_questions", "prompts_per_tag", "num_images"))
"""What nothing before the last step depends on, scores during training included."""


def execute(run: RunConfig, folder: Path, cache: Path, say: Say, stop: threading.Event) -> None:
    """Train, score and diagnose ``run``; resume where an earlier attempt in ``folder`` stopped.

    Writes into ``folder``: ``run.yaml``, ``metrics.jsonl``, ``scores.jsonl`` (validation, during training), checkpoints,
    ``routing.jsonl`` (during training), ``conflict.json``, ``routing.json``, ``interaction.json``, ``samples.json``, and last of
    all ``scores.json`` (test), the sign that it is done.

    Raises:
        ValueError: the start does not load, or ``folder`` holds another run.
        InterruptedRunError: ``stop`` was set; the same call resumes.
        TrainingDivergedError: a loss or a gradient is not finite.
    """
    with processes(run.device, run.bf16, run.parallel) as parallel, held(folder, say) if parallel.first else nullcontext():
        if parallel.first:
            _claim(folder, run, say)
            checkpoints.sweep(folder)
        parallel.wait()
        if not (folder / RESULT).is_file():
            _execute(run, folder, cache, say if parallel.first else _say_nothing, stop, parallel)


def _execute(run: RunConfig, folder: Path, cache: Path, say: Say, stop: threading.Event, parallel: Parallel) -> None:
    resume = next(reversed(all_checkpoints(folder)), None)
    state = checkpoints.read_state(resume) if resume else TrainerState(0, 0, 0)
    start, meter = state.step, Meter(Spent(**state.spent))
    model, processor = (load if parallel.holds_weights else load_shapes)(str(resume or run.model_name_or_path))
    if parallel.holds_weights:
        model.to(parallel.device)
    builder = SequenceBuilder(processor)
    with parallel.first_alone():  # it draws and encodes; the others find it done
        source = open_source(run, model, processor, builder, cache, lambda what, done, of: say(f"{what}: {done} of {of}"))
        scorer = _scorer(run, model, processor, builder, cache)
    if resume is None:
        model = fit(model, run.structure, run.seed, source)
    with tracking(run.report_to if parallel.first else (), folder, start, configs.plain(run)) as trackers:
        watch = functools.partial(_watch, scorer, folder, trackers, say)
        trainer = Trainer(run, model, processor, source, folder, say, watch, stop, parallel, trackers, meter=meter)
        if resume:
            say(f"resuming from {resume}")
        if parallel.first:
            _forget_after(folder, start if resume else -1)  # without a checkpoint the measurement of the start is made again, too
        if parallel.first and not resume:
            _measure_start(run, model, source, folder, watch)
        model = trainer.train(resume) if run.max_steps else model.eval()
    if parallel.first:
        _finish(run, model.to(parallel.device), source, scorer, folder, say, meter)
    parallel.wait()


def _scorer(
    run: RunConfig, model: UnifiedModel, processor: UnifiedProcessor, builder: SequenceBuilder, cache: Path
) -> Scorer | HeldOut:
    if run.files is None:
        if run.evaluation.benchmarks:
            raise ValueError("evaluation.benchmarks is for runs on files, and files is not given: leave it out")
        return Scorer(run.evaluation, builder)
    return held_out(run.files, run.evaluation, processor, builder, model.model.vqmodel, cache)


def _measure_start(run: RunConfig, model: UnifiedModel, source: BatchSource, folder: Path, watch: Watch) -> None:
    if run.evaluation.eval_steps:
        watch(0, model)
    if run.diagnose and len(source.tasks) == len(Task):
        _write_measured(measure_conflict(Subject(model, source, source, 0), _no_progress), folder / "conflict-start.json")


def _finish(
    run: RunConfig,
    model: UnifiedModel,
    source: BatchSource,
    scorer: Scorer | HeldOut,
    folder: Path,
    say: Say,
    meter: Meter,
) -> None:
    if run.diagnose:
        _diagnose(Subject(model, source, source, run.max_steps, folder), folder)
    say("scoring on the test sets")
    scores = scorer.test(model, folder)
    write_json_atomic(
        folder / RESULT,
        {
            "step": run.max_steps,
            **vars(meter.read()),
            "scores": [score.to_json() for score in scores],
        },
    )
    say(
        "done: "
        + "  ".join(f"{s.benchmark} {s.value:.3f}" for s in scores if s.metric in ("accuracy", "overall", "log_probability"))
    )


def _say_nothing(line: str) -> None:
    """Only the first process prints."""


def prepare(run: RunConfig, cache: Path, progress: Progress) -> None:
    """Draw and encode the data that ``run`` needs, so that processes started together find it in ``cache``."""
    model, processor = load(run.model_name_or_path)
    world_batches(run.data, model, SequenceBuilder(processor), run.seed, cache, progress)


def _claim(folder: Path, run: RunConfig, say: Say) -> None:
    """Save ``run`` in ``folder``, or make sure that it is the one saved there: to its end, where only the test is of other size."""
    path = folder / RUN
    if path.is_file() and (found := configs.differences(configs.load(RunConfig, [path]), run)):
        told = "; ".join(found)
        if not (_trained(folder, run) and all(line.startswith(_TEST_SIZES) for line in found)):
            raise ValueError(f"{folder} holds another run ({path} has {told}): choose another output folder, or remove it")
        say(f"{folder} is trained and not scored yet ({RUN} has {told}): it is scored as asked now")
    write_text_atomic(path, configs.dump(run))


def _trained(folder: Path, run: RunConfig) -> bool:
    """Whether the last step of ``run`` is in ``folder``, and only its scores are missing."""
    last = next(reversed(all_checkpoints(folder)), None)
    return last is not None and not (folder / RESULT).is_file() and checkpoints.read_state(last).step == run.max_steps


def _watch(
    scorer: Scorer | HeldOut,
    folder: Path,
    trackers: Sequence[Tracker],
    say: Say,
    step: int,
    model: UnifiedModel,
) -> None:
    """Score on validation samples; say when one task falls while the other rises."""
    model.eval()
    scores = scorer.validate(model)
    for score in scores:
        record = {"step": step, "benchmark": score.benchmark, "metric": score.metric, "value": score.value}
        append_jsonl(folder / "scores.jsonl", record)
    for tracker in trackers:
        tracker.log(step, {f"validation/{score.benchmark}": score.value for score in scores})
    history: dict[int, dict[str, float]] = {}
    for line in (folder / "scores.jsonl").read_text().splitlines():
        row = json.loads(line)
        history.setdefault(row["step"], {})[row["benchmark"]] = row["value"]
    warning = early_warning([*history.values()], tasks_of_benchmarks())
    if warning:
        say(f"step {step}: {warning}")


def _forget_after(folder: Path, step: int) -> None:
    """Drop log lines past ``step``, which training goes on from, since those steps are run again; files without lines go, too."""
    for name in ("metrics.jsonl", "scores.jsonl", ROUTING_LOG):
        path = folder / name
        if path.is_file():
            lines = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
            if lines:
                write_text_atomic(path, "".join(line + "\n" for line in lines))
            else:
                path.unlink()


def _diagnose(subject: Subject, folder: Path) -> None:
    _write_measured(measure_routing(subject, _no_progress), folder / "routing.json")
    _write_measured(measure_interaction(subject, _no_progress), folder / "interaction.json")
    _write_measured(measure_conflict(subject, _no_progress), folder / "conflict.json")


def _write_measured(measured: Measured, path: Path) -> None:
    if not isinstance(measured, LeftOut):
        write_json_atomic(path, measured)


def _no_progress(what: str, done: int, of: int) -> None:
    """A run's diagnosis is short beside the run."""
