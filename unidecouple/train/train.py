"""One training run from its configuration to its scores, in one folder; a finished run is not run again."""

from __future__ import annotations

import functools
import json
import shlex
import shutil
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unidecouple import config as configs
from unidecouple.batch import Task
from unidecouple.convert.stored import all_checkpoints
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.diagnose import attention_interaction, gradient_conflict, routing
from unidecouple.diagnose.early_warning import early_warning
from unidecouple.diagnose.probe import ProbeInput, ProbeResult, Skipped
from unidecouple.eval.suite import tasks_of_benchmarks
from unidecouple.files import append_jsonl, write_json_atomic
from unidecouple.run import RunConfig
from unidecouple.source import BatchSource, PrintLine, Progress, RunScorer, data_source
from unidecouple.train import checkpoint as checkpoints
from unidecouple.train.build import apply_structure, load_with_tokens
from unidecouple.train.checkpoint import TrainerState
from unidecouple.train.faults import naming_broken_file
from unidecouple.train.freezing import FULL_WEIGHTS, compress_frozen
from unidecouple.train.launch import float32_products, processes
from unidecouple.train.lock import run_lock
from unidecouple.train.meter import Meter, ResourceUsage
from unidecouple.train.parallel import Parallel
from unidecouple.train.progress import progress_bar
from unidecouple.train.run_folder import RESULT, RUN, check_place, claim_folder, scored
from unidecouple.train.run_logs import METRICS, SCORES, cut_logs_after, read_log
from unidecouple.train.selection import LATER, scores_of, set_later_aside
from unidecouple.train.stages import Trainer, ValidationCallback
from unidecouple.train.step import train_step
from unidecouple.train.stop_request import InterruptedRunError, deferred_signals
from unidecouple.train.trackers import TrackedRun, Tracker, tracking

if TYPE_CHECKING:
    from unidecouple.models.base import UnifiedModel
    from unidecouple.models.processing import UnifiedProcessor


def train(run: RunConfig, folder: Path, cache: Path, print_line: PrintLine, stop: threading.Event) -> None:
    """Train, score and diagnose ``run``; resume where an earlier attempt in ``folder`` stopped.

    Writes into ``folder``: ``run.yaml`` and ``fingerprints.json``; before training ``conflict-start.json``; during it
    ``metrics.jsonl``, ``scores.jsonl`` (validation), ``routing.jsonl`` and checkpoints; after it ``conflict.json``,
    ``routing.json``, ``interaction.json``, ``samples.json``; and last of all ``scores.json`` (test), which marks the run as
    finished.

    Raises:
        ValueError: the start does not load, ``folder`` is it or holds another model or run, or the run's
            data changed since it began.
        InterruptedRunError: ``stop`` was set; the same call resumes.
        TrainingDivergedError: a loss or a gradient is not finite; checkpoints written before stay.
    """
    check_place(folder, run)
    with (
        processes(run.device, run.bf16, run.parallel) as parallel,
        run_lock(folder, print_line) if parallel.first else nullcontext(),
        float32_products(parallel.device, run.tf32),
    ):
        run.check_sharding(parallel.size)
        if parallel.first:
            run = claim_folder(folder, run, cache, print_line)
        parallel.wait()
        run = run if parallel.first else configs.load(RunConfig, [folder / RUN])
        print_line = print_line if parallel.first else _say_nothing
        if scored(folder):
            print_line(f"{folder} is finished after {_step(folder)} steps{_next(folder)}")
            return
        print_line(f"loading {run.model_name_or_path}")
        job = _build(run, folder, cache, print_line, parallel)
        with (
            tracking(run.report_to if parallel.first else (), TrackedRun(folder, job.step, configs.plain(run))) as trackers,
            progress_bar(run.max_steps, job.step, print_line, shown=parallel.first) as progress,
        ):
            print_line = progress.print_line
            trainer = job.trainer(run, folder, print_line, stop, trackers)
            if parallel.first:
                _begin_logs(job, run, folder, print_line, trainer.validate)
                if trainer.selection and run.max_steps and job.resume is None:
                    trainer.selection.check([row for row in scores_of(folder) if not row["step"]])
            with deferred_signals(stop), trainer.batches() as batches:
                for stage in trainer.stages(job.resume):
                    for step in stage.steps():
                        batch, counted = batches.take(step - 1), stage.logged_expert_groups(step)
                        result = train_step(stage.model, stage.optimizer, batch, stage.settings, step, counted)
                        batches.wait_until_idle()
                        stage.finish_step(step, result)
                        progress.show(step, result.losses)
        if parallel.any_process(stop.is_set()):
            raise InterruptedRunError(f"stopped after the last of {run.max_steps} steps, before scoring; saved in {folder}")
        if parallel.first:
            shutil.rmtree(folder / FULL_WEIGHTS, ignore_errors=True)  # the checkpoints contain them
            step, model = _chosen(run, trainer, folder, print_line)
            model = model.eval().to(parallel.device)
            if run.diagnose:
                _probe(ProbeInput(model, source=job.source, described=job.source, step=step), folder)
            print_line("scoring on the test sets")
            _score(step, job, model, folder, print_line)
        parallel.wait()


@dataclass(frozen=True)
class _Job:
    """The loaded parts of a run.

    Attributes:
        model, processor: of the start, or of the checkpoint that is resumed.
        source: its batches.
        scorer: its benchmarks.
        resume: the checkpoint, or None.
        step: of the checkpoint; 0 without.
        meter: usage of earlier attempts included.
        parallel: the processes that share the run.
    """

    model: UnifiedModel
    processor: UnifiedProcessor
    source: BatchSource
    scorer: RunScorer
    resume: Path | None
    step: int
    meter: Meter
    parallel: Parallel

    def trainer(
        self, run: RunConfig, folder: Path, print_line: PrintLine, stop: threading.Event, trackers: Sequence[Tracker]
    ) -> Trainer:
        """The trainer of ``run``, which validates by ``scorer``."""
        return Trainer(
            run,
            self.model,
            self.processor,
            self.source,
            folder,
            print_line,
            functools.partial(_validate, self.scorer, folder, trackers, print_line),
            stop,
            self.parallel,
            trackers,
            meter=self.meter,
        )


def _build(run: RunConfig, folder: Path, cache: Path, print_line: PrintLine, parallel: Parallel) -> _Job:
    resume = next(reversed(all_checkpoints(folder)), None)
    state = checkpoints.read_state(resume) if resume else TrainerState(0, 0, 0)
    with naming_broken_file(resume / "model.safetensors") if resume else nullcontext():
        start = str(resume or run.model_name_or_path)  # a checkpoint that is resumed has the added tokens
        model, processor = load_with_tokens(start, run.add_tokens, shapes_only=not parallel.holds_weights)
    if parallel.holds_weights:
        (model.model.vqmodel if run.quantize_frozen else model).to(parallel.device)  # the rest is compressed first
    builder = SequenceBuilder(processor)
    meter = Meter(ResourceUsage(**state.spent))
    with parallel.first_alone():  # it generates and encodes the data; the others read the cache
        source_kind = data_source(run)
        source = source_kind.open(
            run, model, processor, builder, cache, lambda what, done, of: print_line(f"{what}: {done} of {of}")
        )
        scorer = source_kind.scorer(run, model, processor, builder, cache)
    if resume is None:
        model = apply_structure(model, run.structure, run.seed, source)
    else:
        print_line(f"resuming from {resume}")
    if run.quantize_frozen:
        compress_frozen(model, run.quantize_frozen, run.stages, folder, parallel.first)
        model.to(parallel.device)
    return _Job(model, processor, source, scorer, resume, state.step, meter, parallel)


def _begin_logs(job: _Job, run: RunConfig, folder: Path, print_line: PrintLine, validate: ValidationCallback) -> None:
    """Cut the logs to the step that is resumed; at the start, measure the model before training."""
    cut_logs_after(folder, job.step if job.resume else -1, print_line)  # without a checkpoint the start is measured again, too
    if job.resume is not None:
        logged = job.step - job.step % run.logging_steps
        if max((record["step"] for record in read_log(folder / METRICS)), default=0) < logged:
            print_line(f"warning: {folder / METRICS} lost the last steps before {job.step}, where the run resumes")
        return
    if run.evaluation.eval_steps:
        validate(0, job.model)
    if run.diagnose and len(job.source.tasks) == len(Task):
        probe_input = ProbeInput(job.model, source=job.source, described=job.source, step=0)
        _write_measured(gradient_conflict.measure(probe_input, _no_progress), folder / "conflict-start.json")


def _chosen(run: RunConfig, trainer: Trainer, folder: Path, print_line: PrintLine) -> tuple[int, UnifiedModel]:
    """The step and the model that the run ends with: its last, or by ``load_best_model_at_end`` its best."""
    from unidecouple.convert.load import load

    last = next(reversed(all_checkpoints(folder)), None)
    step = checkpoints.read_state(last).step if last else 0
    best = trainer.best_step() if run.load_best_model_at_end else None
    if best is None or best == step:
        return step, trainer.model
    print_line(f"best {run.metric_for_best_model} at step {best}: the run ends with it; later checkpoints are in {folder / LATER}")
    model, _ = load(str(folder / f"checkpoint-{best}"))
    set_later_aside(folder, best)
    return best, model


def _step(folder: Path) -> int:
    """Step that the finished run in ``folder`` was scored at."""
    return int(json.loads((folder / RESULT).read_bytes())["step"])


def _score(step: int, job: _Job, model: UnifiedModel, folder: Path, print_line: PrintLine) -> None:
    scores = job.scorer.test(model, folder)
    rows = [score.to_json() for score in scores]
    write_json_atomic(folder / RESULT, {"step": step, **vars(job.meter.read()), "scores": rows})
    units = {"accuracy": "", "overall": "", "log_probability": " nats per token"}
    shown = [f"{score.benchmark} {score.value:.3f}{units[score.metric]}" for score in scores if score.metric in units]
    print_line("done: " + "  ".join(shown))
    if following := _next(folder):
        print_line(following.lstrip("; "))


def _next(folder: Path) -> str:
    """The newest checkpoint of a run, and what to do with it; "" for a run that only scores its start."""
    newest = next(reversed(all_checkpoints(folder)), None)
    return "" if newest is None else f"; checkpoint: {newest}; next: unidecouple chat {shlex.quote(str(folder))}"


def _say_nothing(line: str) -> None:
    """Only the first process prints."""


def prepare(run: RunConfig, cache: Path, progress: Progress) -> None:
    """Generate and encode the data that ``run`` needs, so that processes started together find it in ``cache``."""
    model, processor = load_with_tokens(run.model_name_or_path, run.add_tokens)
    data_source(run).open(run, model, processor, SequenceBuilder(processor), cache, progress)


def _validate(
    scorer: RunScorer,
    folder: Path,
    trackers: Sequence[Tracker],
    print_line: PrintLine,
    step: int,
    model: UnifiedModel,
) -> None:
    """Score on validation samples; warn if one task falls while the other rises."""
    model.eval()
    scores = scorer.validate(model)
    for score in scores:
        record = {"step": step, "benchmark": score.benchmark, "metric": score.metric, "value": score.value}
        append_jsonl(folder / SCORES, record)
    for tracker in trackers:
        tracker.log(step, {f"validation/{score.benchmark}": score.value for score in scores})
    print_line(f"step {step} [validation]  " + "  ".join(f"{score.benchmark} {score.value:.3f}" for score in scores))
    history: dict[int, dict[str, float]] = {}
    for row in read_log(folder / SCORES):
        history.setdefault(row["step"], {})[row["benchmark"]] = row["value"]
    warning = early_warning([*history.values()], tasks_of_benchmarks())
    if warning:
        print_line(f"step {step}: {warning}")


def _probe(probe_input: ProbeInput, folder: Path) -> None:
    _write_measured(routing.measure(probe_input, _no_progress), folder / "routing.json")
    _write_measured(attention_interaction.measure(probe_input, _no_progress), folder / "interaction.json")
    _write_measured(gradient_conflict.measure(probe_input, _no_progress), folder / "conflict.json")


def _write_measured(measured: ProbeResult, path: Path) -> None:
    if not isinstance(measured, Skipped):
        write_json_atomic(path, measured)


def _no_progress(what: str, done: int, of: int) -> None:
    """Print no progress: a run's diagnosis is short."""
