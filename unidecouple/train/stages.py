"""The stages of a run: setup, the work after each step (log, validation, checkpoint), and exact resume."""

from __future__ import annotations

import functools
import itertools
import math
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from unidecouple.batch import JointBatch, Task
from unidecouple.files import append_jsonl
from unidecouple.methods.optimizers import make_optimizer
from unidecouple.methods.stage import Stage
from unidecouple.run import RunConfig
from unidecouple.source import BatchSource, PrintLine
from unidecouple.train import checkpoint as checkpoints
from unidecouple.train.build import add_lora, apply_structure
from unidecouple.train.checkpoint import TrainerState
from unidecouple.train.ema import EMA
from unidecouple.train.gradients import Gradients
from unidecouple.train.lr_scaling import install_lr_scaling, scaled_rows
from unidecouple.train.meter import Meter
from unidecouple.train.parallel import Parallel
from unidecouple.train.prefetch import Prefetch
from unidecouple.train.routing_log import RoutingLog
from unidecouple.train.run_logs import METRICS
from unidecouple.train.selection import Selection, scores_of
from unidecouple.train.step import StepResult, StepSettings
from unidecouple.train.stop_request import InterruptedRunError
from unidecouple.train.trackers import Tracker
from unidecouple.train.trainable import check_shield, make_param_groups, table, train_all_rows, train_present_rows

if TYPE_CHECKING:
    from unidecouple.models.base import UnifiedModel
    from unidecouple.models.processing import UnifiedProcessor

ValidationCallback = Callable[[int, "UnifiedModel"], None]


@dataclass
class Trainer:
    """Trains one model through its stages.

    Attributes:
        config: the run.
        model: replaced when a stage changes its structure or adds low-rank updates.
        processor: saved with every checkpoint.
        source: batches by step.
        folder: where checkpoints and ``metrics.jsonl`` go.
        say: prints a line of progress.
        validate: called by the first process every ``eval_steps`` with (step, model).
        parallel: the processes that share the run.
        trackers: where measurements go besides ``metrics.jsonl``.
        stop: set from outside (Ctrl-C) to end the run after the step it is in.
        tokens: seen in all steps of the run so far, by the task they count as (see ``Task``); padding left out. The first token of
            a pair, and all of a router sample, count as understanding.
        meter: time and memory used so far, earlier attempts included.
        num_microbatches: per step, over all processes.
    """

    config: RunConfig
    model: UnifiedModel
    processor: UnifiedProcessor
    source: BatchSource
    folder: Path
    say: PrintLine
    validate: ValidationCallback = lambda step, model: None
    stop: threading.Event = field(default_factory=threading.Event)
    parallel: Parallel = field(default_factory=Parallel)
    trackers: Sequence[Tracker] = ()
    tokens: Counter[str] = field(default_factory=Counter)
    meter: Meter = field(default_factory=Meter)
    num_microbatches: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_microbatches = self.config.num_microbatches(self.parallel.size)
        for stage in self.config.stages if self.config.bf16 else ():
            if stage.lora is not None and "experts" in stage.lora.targets and stage.lora.r % 8:
                raise ValueError(
                    f"stage {stage.name!r}: r={stage.lora.r} on experts must be a multiple of 8 with bf16 (16-byte rows)"
                )
        for stage in self.config.stages:
            stage.of(self.source.tasks)

    def stages(self, resume: Path | None = None) -> Iterator[StageRun]:
        """Yield the stages that are left, each ready to step; ``resume`` is the checkpoint whose weights ``model`` holds.

        A stage is set up when it is yielded, and saved and gathered before the next one.

        Raises:
            ValueError: ``resume`` is of no step of this run.
        """
        if not self.config.max_steps:
            return
        state = checkpoints.read_state(resume) if resume else TrainerState(0, 0, 0)
        plan = self.plan()
        last = len(plan) - 1
        if sum(steps for _, steps in plan[: state.stage]) + state.stage_step != state.step or state.stage >= len(plan):
            raise ValueError(f"cannot resume: {resume} is of no step of this run's stages. Delete it and run the command again")
        self.tokens.update(state.tokens)
        self._warn_of_parts()
        for index, (stage, steps) in enumerate(plan):
            if index < state.stage or (index == state.stage and (state.stage_step == steps or self.exhausted())):
                continue
            start = state.stage_step if index == state.stage else 0
            if stage.structure is not None and start == 0:
                self.model = apply_structure(self.model, stage.structure, self.config.seed + index, self.source)
            if stage.lora is not None and start == 0:
                self.model = add_lora(self.model, stage.lora, self.config.seed + index)
            running = self._begin(index, steps, start, resume if start else None)
            yield running
            train_all_rows(self.model)
            self.save(running, running.reached, None if index < last or self.config.save_only_model else running.optimizer)
            with self.parallel.full_model(running.model, self.model):
                pass  # the next stage starts from it

    def batches(self) -> Prefetch[list[JointBatch]]:
        """This process's micro-batches by step (from 0); workers may build the next step's ahead."""
        return Prefetch(self._share, self.config.max_steps, self.config.dataloader_num_workers)

    def plan(self) -> list[tuple[Stage, int]]:
        """See ``stage_steps``."""
        return stage_steps(self.config)

    def _begin(self, index: int, steps: int, start: int, resume: Path | None) -> StageRun:
        """Wrap the model and make the optimizer of stage ``index``, of which ``start`` steps are done."""
        stage = self.config.stages[index]
        tasks = stage.of(self.source.tasks)
        make_param_groups(self.model, stage.train, stage.learning_rate)  # before it is wrapped: DDP and FSDP2 read requires_grad
        wrapped = self.parallel.wrap(self.model)
        trained = self.parallel.trained(wrapped)
        groups = make_param_groups(trained, stage.train, stage.learning_rate)
        if not groups:
            raise ValueError(f"stage {stage.name!r} trains nothing: name parts in its train, as train: {{attention: 1, ffn: 1}}")
        if self.parallel.size == 1 and self.config.ema_decay is None and stage.trains_rows_alone:
            train_present_rows(trained, groups, [task for task in Task if task not in tasks])
        what = table(trained, groups, stage.group_lr_scale)
        self.say(f"stage {index + 1}/{len(self.config.stages)} {stage.name!r}, {steps} steps\n{what}")
        scaled = scaled_rows(trained, stage.group_lr_scale)
        gradients = Gradients.of(trained, stage.gradient, self.parallel, scaled)
        check_shield(trained, stage)
        optimizer = make_optimizer(self.config.optim, groups, self.config.weight_decay)
        install_lr_scaling(optimizer, scaled)
        if resume is not None:
            checkpoints.restore_optimizer(resume, optimizer, self.parallel)
        before = sum(count for _, count in self.plan()[:index])
        averages = EMA(self.config.ema_decay, trained, self.parallel, self._averaged(stage, before, start))
        if self.config.gradient_checkpointing:
            with warnings.catch_warnings(action="ignore", category=FutureWarning):  # its new name is not in transformers 5.22
                trained.gradient_checkpointing_enable({"use_reentrant": False})
            trained.disable_input_require_grads()  # it would send gradients through a frozen vision tower
        return StageRun(
            trainer=self,
            index=index,
            before=before,
            start=start,
            num_steps=steps,
            model=wrapped,
            optimizer=optimizer,
            averages=averages,
            settings=StepSettings(
                objective=self.config.objective,
                tasks=tasks,
                max_grad_norm=self.config.max_grad_norm,
                parallel=self.parallel,
                gradients=gradients,
                forward_options=lambda batch, step: stage.forward_options(batch, step - 1 - before),
                seed=self.config.seed,
            ),
        )

    def _warn_of_parts(self) -> None:
        cuts = self.config.gradient_accumulation_steps
        for loss in self.config.objective.auxiliary:
            if loss.per_microbatch and cuts > 1:
                self.say(
                    f"warning: the loss {loss.kind!r} is taken over each of gradient_accumulation_steps={cuts} micro-batches "
                    "separately: results are close to those of whole steps, not equal"
                )

    @functools.cached_property
    def _routing_log(self) -> RoutingLog:
        begins = itertools.accumulate((steps for _, steps in self.plan()), initial=0)
        changes = [begin for begin, stage in zip(begins, self.config.stages, strict=False) if stage.structure]
        return RoutingLog(self.folder, self.say, changes)

    def _averaged(self, stage: Stage, before: int, start: int) -> Path | None:
        """The checkpoint whose averages continue at step ``start`` of ``stage``; None after a change of structure."""
        if (stage.structure is not None and start == 0) or not before + start:
            return None
        return self.folder / f"checkpoint-{before + start}"  # a stage's end is saved, too

    def _share(self, step: int) -> list[JointBatch]:
        """This process's micro-batches of ``step`` (from 0), of its stage's tasks, on its device."""
        plan = self.plan()
        ends = itertools.accumulate(steps for _, steps in plan)
        stage = next(stage for (stage, _), end in zip(plan, ends, strict=True) if step < end)
        tasks = tuple(task for task in Task if stage.tasks in ("both", task.key))
        mine = range(self.parallel.rank, self.num_microbatches, self.parallel.size)
        batches = [self.source.batch(step, part, self.num_microbatches, tasks) for part in mine]
        return [tuple(batch.to(self.parallel.device) for batch in part) for part in batches]

    def save(self, running: StageRun, step: int, optimizer: torch.optim.Optimizer | None) -> None:
        """Write a checkpoint of ``step``; without ``optimizer`` where another stage follows, which starts a new one."""
        state = TrainerState(step, running.index, step - running.before, dict(self.tokens), vars(self.meter.read()))
        base = self.config.model_name_or_path
        checkpoints.save(self.folder, running.model, self.processor, state, optimizer, running.averages, self.parallel, base)
        if self.parallel.first:
            checkpoints.prune(self.folder, self.config.save_total_limit, self.best_step())

    @functools.cached_property
    def selection(self) -> Selection | None:
        """What chooses the best checkpoint and the end."""
        return Selection.of(self.config, sum(steps for _, steps in self.plan()[:-1]))

    def best_step(self) -> int | None:
        """Step of the best validation score so far; None where none is chosen."""
        return self.selection.best(scores_of(self.folder)) if self.selection else None

    def exhausted(self) -> bool:
        """Whether early stopping ends the run; the first process's scores decide for all."""
        if self.selection is None or self.selection.patience is None:
            return False
        return self.parallel.any_process(self.parallel.first and self.selection.exhausted(scores_of(self.folder)))

    def _improved(self, step: int) -> bool:
        """Whether the score of ``step`` is the best so far and its checkpoint must be kept."""
        if not self.config.load_best_model_at_end:
            return False
        return self.parallel.any_process(self.parallel.first and self.best_step() == step)

    def log(self, step: int, stage: Stage, result: StepResult, rate_now: float, tokens_per_second: float, seconds: float) -> None:
        """Write the step's measurements to ``metrics.jsonl`` and the trackers, and print them; ``seconds`` are per step."""
        values = {"lr": rate_now, "grad_norm": result.grad_norm, "tokens_per_second": tokens_per_second}
        values |= {f"loss/{name}": value for name, value in result.losses.items()}
        values |= {f"tokens/{task}": count for task, count in self.tokens.items()}
        values |= {f"router_accuracy/{task}": share for task, share in result.router_accuracy.items()}
        append_jsonl(self.folder / METRICS, {"step": step, "stage": stage.name} | values)
        if result.routing is not None:
            values |= self._routing_log.write(step, stage.name, self.model.config.text_config, result.routing)
        for tracker in self.trackers:
            tracker.log(step, values)
        losses = "  ".join(f"{name} {value:.3f}" for name, value in result.losses.items())
        left = round(seconds * (self.config.max_steps - step))
        self.say(f"step {step}/{self.config.max_steps} [{stage.name}]  {losses}  {tokens_per_second:,.0f} tokens/s  {left} s left")


@dataclass
class StageRun:
    """A stage that is running.

    Attributes:
        trainer: of the run.
        index: of the stage, from 0.
        before: steps of the stages before it.
        start: steps of it done by an earlier attempt.
        num_steps: steps of the stage in all.
        model: as ``Parallel`` wrapped it.
        optimizer: over what trains.
        averages: EMA of what trains.
        settings: of its steps.
    """

    trainer: Trainer
    index: int
    before: int
    start: int
    num_steps: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    averages: EMA
    settings: StepSettings
    _began: float = field(default_factory=time.monotonic)
    _tokens: int = 0
    _stopped_early: bool = False
    reached: int = field(init=False)
    """Steps of the run that are done."""

    def __post_init__(self) -> None:
        self.reached = self.before + self.start

    @property
    def stage(self) -> Stage:
        """Its configuration."""
        return self.trainer.config.stages[self.index]

    def steps(self) -> Iterator[int]:
        """Yield the step numbers (of the run, from 1) that are left, each with model and learning rates set."""
        trained = self.trainer.parallel.trained(self.model)
        self._began = time.monotonic()
        for done in range(self.start, self.num_steps):
            if self._stopped_early:
                return
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * rate(self.stage, done, self.num_steps)
            self.model.train()  # each time: scoring switches it off
            trained.model.vqmodel.eval()  # frozen; train() switches it on with the rest
            yield self.before + done + 1

    def logged_expert_groups(self, step: int) -> Sequence[int]:
        """Experts per group if ``step`` is logged, so that its routing is counted; else empty."""
        return self.trainer.model.config.text_config.expert_groups if self._logged(step) else ()

    def finish_step(self, step: int, result: StepResult) -> None:
        """Log, validate and save after ``step``, as configured.

        Raises:
            InterruptedRunError: the run was asked to stop; a checkpoint of this step was written.
        """
        trainer, config, parallel = self.trainer, self.trainer.config, self.trainer.parallel
        self.reached = step
        self._tokens += sum(result.tokens.values())
        trainer.tokens.update(result.tokens)
        self.averages.update()
        done, improved = step - self.before, False
        if parallel.first and self._logged(step):
            seconds = time.monotonic() - self._began
            rate_now = self.optimizer.param_groups[-1]["lr"]
            trainer.log(step, self.stage, result, rate_now, self._tokens / seconds, seconds / (done - self.start))
        if config.evaluation.eval_steps and step % config.evaluation.eval_steps == 0:
            with parallel.full_model(self.model, trainer.model) as full:
                if parallel.first:
                    trainer.validate(step, full)
            improved = trainer._improved(step)
            self._stopped_early = trainer.exhausted()
            if self._stopped_early and parallel.first:
                waited = f"{config.metric_for_best_model} is no better in {config.early_stopping_patience} scores"
                trainer.say(f"step {step}: early stopping, since {waited}")
        stopped = parallel.any_process(trainer.stop.is_set())
        due = stopped or improved or (config.save_steps and step % config.save_steps == 0)
        if done < self.num_steps and not self._stopped_early and due:
            trainer.save(self, step, self.optimizer)
            if stopped:
                raise InterruptedRunError(f"stopped after step {step} of {config.max_steps}; saved in {trainer.folder}")

    def _logged(self, step: int) -> bool:
        return step % self.trainer.config.logging_steps == 0 or step == self.trainer.config.max_steps


def stage_steps(run: RunConfig) -> list[tuple[Stage, int]]:
    """Stages and their steps, by share; they sum to ``max_steps``. Where a finished run continues, the last is longer.

    Raises:
        ValueError: ``max_steps`` is not known yet.
    """
    if run.max_steps < 0:
        raise ValueError("max_steps=-1 is counted when the run begins: name max_steps here")
    planned, whole = run.extended_from or run.max_steps, sum(stage.share for stage in run.stages)
    ends, reached = [0], 0.0
    for stage in run.stages:
        reached += stage.share
        ends.append(round(planned * reached / whole))
    steps = [after - before for before, after in itertools.pairwise(ends)]
    if steps:
        steps[max((i for i, count in enumerate(steps) if count), default=-1)] += run.max_steps - planned
    return list(zip(run.stages, steps, strict=True))


def rate(stage: Stage, step: int, steps: int) -> float:
    """Factor on the peak learning rate at ``step`` of ``steps``: linear warm-up, then constant or cosine."""
    warm = min(1.0, (step + 1) / max(1, stage.warmup_steps))
    if stage.lr_scheduler_type == "constant":
        return warm
    swing = 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))
    return warm * (stage.min_lr_ratio + (1 - stage.min_lr_ratio) * swing)
