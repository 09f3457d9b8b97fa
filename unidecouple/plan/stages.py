"""From a run's recipe to the plan of each of its stages."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from unidecouple.batch import Task
from unidecouple.methods.objective import Objective
from unidecouple.methods.optimizers import optimizer_bytes
from unidecouple.methods.selection import frozen_matrices, select
from unidecouple.methods.stage import Lora, Stage
from unidecouple.methods.structure import Structure
from unidecouple.models.base import UnifiedModel
from unidecouple.models.compressed import StoredForm
from unidecouple.models.configuration import UniJanusConfig
from unidecouple.models.families import UnifiedConfig
from unidecouple.plan.batch_shapes import BatchShape, Lengths, joint, resized
from unidecouple.plan.devices import Assumptions, Hardware, device
from unidecouple.plan.estimate import Estimate, StageWorkload, breaks_first, estimate, smallest
from unidecouple.plan.forward import DECODER, TracedModel, trace_ops
from unidecouple.plan.op_trace import OpTrace
from unidecouple.plan.per_task_gradients import count_per_task_gradients
from unidecouple.plan.sizes import build, configuration
from unidecouple.plan.strategies import STRATEGIES, ParallelStrategy
from unidecouple.plan.weights import count
from unidecouple.run import RunConfig

VISION_LAYERS = "model.vision_model.encoder.layers"
SECONDS_A_DAY = 86400


@dataclass(frozen=True)
class PlanRequest:
    """The hardware and sizes to plan for.

    Attributes:
        gpus: numbers of devices.
        device: name of the device.
        dtype: of matrix products: "bf16" or "fp32". Weights are float32 (see ``Memory``).
        batch_size: samples of a whole step, over all devices, both tasks together in the recipe's ratio; None: the recipe's.
        lengths: tokens of a sample.
        samples: of the whole run; None: max_steps steps.
        price: per device hour, in any currency; None leaves costs out.
        assume: efficiencies and latencies that no data sheet gives.
    """

    gpus: tuple[int, ...] = (8,)
    device: str = "h100"
    dtype: Literal["bf16", "fp32"] = "bf16"
    batch_size: int | None = None
    lengths: Lengths = field(default_factory=Lengths)
    samples: int | None = None
    price: float | None = None
    assume: Assumptions = field(default_factory=Assumptions)

    def __post_init__(self) -> None:
        for name, values in (("gpus", self.gpus), ("batch size", (self.batch_size,)), ("samples", (self.samples,))):
            for value in values:
                if value is not None and value < 1:
                    raise ValueError(f"{name} {value} must be at least 1")
        device(self.device)  # raises if there is none


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        stage: of the recipe.
        config: of the model in this stage.
        load: work of a step.
        samples: of the stage, over all devices and steps.
        estimates: by strategy and number of devices, if possible.
        smallest: number of devices that fit, by strategy; None if none does up to 1,024 or the number of samples.
        breaks: what limits scaling first, by strategy.
    """

    stage: Stage
    config: UnifiedConfig
    load: StageWorkload
    samples: int
    estimates: list[Estimate]
    smallest: dict[ParallelStrategy, int | None]
    breaks: dict[ParallelStrategy, str]

    def days(self, found: Estimate) -> float:
        """Days that the stage takes."""
        return math.ceil(self.samples / found.samples) * found.seconds / SECONDS_A_DAY

    def cost(self, found: Estimate, price: float) -> float:
        """Cost of the stage at ``price`` per device hour."""
        return self.days(found) * 24 * found.gpus * price


def plan(run: RunConfig, question: PlanRequest, start: UnifiedConfig | None = None) -> list[StagePlan]:
    """Plans of the stages of ``run``, in order. As in training, the recipe's batch sizes are per whole step.

    With ``start``, a model of that configuration takes the place of the run's own start.

    Raises:
        ValueError: the model is not known, a stage trains what the model lacks, or a device has less than one sample of each task.
    """
    raw = configuration(run.model_name_or_path) if start is None else start.to_dict()
    whole = sum(stage.share for stage in run.stages)
    data = resized(run.data, question.batch_size)
    for gpus in question.gpus:
        replace(run, data=data).num_microbatches(gpus)
    averaged: set[str] = set()
    plans: list[StagePlan] = []
    lora: Lora | None = None
    later: list[Structure] = []
    for stage in run.stages:
        if stage.lora is not None and lora is not None:
            raise ValueError(f"stage {stage.name!r} adds LoRA to a model that has some: give it to one stage only")
        lora = stage.lora or lora
        later += [] if stage.structure is None else [stage.structure]
        model = build(raw, run.structure, lora, later)
        step = _of_stage(stage, joint(data, run.model_name_or_path, model.config, question.lengths))
        samples = question.samples or run.max_steps * (data.mmu_batch_size + data.t2i_batch_size)
        if run.ema_decay is not None:
            averaged |= select([name for name, _ in model.named_parameters()], stage.train).keys()
        width, parts = 2 if question.dtype == "bf16" else 4, run.gradient_accumulation_steps
        load = apply_run_settings(run, model, stage, stage_load(model, stage, step, width, parts, run.objective), averaged)
        mine = sum(load.samples.values()) / (data.mmu_batch_size + data.t2i_batch_size)
        planned = StagePlan(stage, model.config, load, round(samples * mine * stage.share / whole), [], {}, {})
        plans.append(_answered(planned, question))
    return plans


def _of_stage(stage: Stage, step: Sequence[BatchShape]) -> tuple[BatchShape, ...]:
    """What of ``step`` the stage trains on; router samples are understanding's, as in training."""
    tasks = stage.of([part.task for part in step if part.counted])
    return tuple(part for part in step if part.task in tasks)


def stage_load(
    model: UnifiedModel,
    stage: Stage,
    step: Sequence[BatchShape],
    width: int,
    accumulation: int = 1,
    objective: Objective | None = None,
) -> StageWorkload:
    """A stage's weights and work, for the whole step ``step``, each device's share in ``accumulation`` parts."""
    tasks, text = stage.of(tuple(Task)), model.config.text_config
    chosen = select([name for name, _ in model.named_parameters()], stage.train).keys()
    traced_model = TracedModel.of(model, chosen, stage.routing or text.task_routing, width)
    shapes = traced_model.shapes

    @functools.cache
    def traced(parts: tuple[BatchShape, ...]) -> OpTrace:
        return trace_ops(traced_model, parts, tasks, (objective or Objective()).distilled)

    def reached(parts: tuple[BatchShape, ...], losses: tuple[Task, ...]) -> set[str]:
        return chosen & trace_ops(traced_model, parts, losses).used

    layers = [f"{DECODER}.layers.{index}" for index in range(text.num_hidden_layers)]
    if isinstance(model.config, UniJanusConfig):
        layers += [f"{VISION_LAYERS}.{index}" for index in range(model.config.vision_config.num_hidden_layers)]
    weights = count(text, shapes, chosen & traced(tuple(step)).used, layers)
    if stage.gradient.by_task:
        kept = count_per_task_gradients(text, shapes, step, tasks, objective or Objective(), reached)
        weights = replace(weights, per_task_gradients=kept)
    return StageWorkload(weights, tuple(step), accumulation, traced)


def apply_run_settings(
    run: RunConfig, model: UnifiedModel, stage: Stage, load: StageWorkload, averaged: Collection[str] = ()
) -> StageWorkload:
    """``load`` with the bytes saved by ``quantize_frozen``, by ``optim`` and by experts of an absent task.

    Weights named in ``averaged`` have a moving average besides.
    """
    weights = replace(load.weights, averaged=sum(model.get_parameter(name).numel() for name in averaged))
    trace = load.trace_ops(load.step)
    moving = trace.used & set(trace.trains)
    if stage.tasks != "both" and model.config.text_config.ffn == "ta_moe" and stage.trains_rows_alone and run.ema_decay is None:
        experts = [name for name in moving if name.endswith((".experts.gate_up_proj", ".experts.down_proj"))]
        weights = replace(weights, absent=sum(model.get_parameter(name).numel() for name in experts) // 2)
    if (storage := run.quantize_frozen) is not None:
        stored = frozen_matrices(model, run.stages)
        sizes = {name: (math.prod(shape), StoredForm(storage, shape).bytes) for name, shape in stored.items()}
        weights = replace(weights, compressed=sizes)
    if run.optim == "adamw_8bit":
        states = optimizer_bytes(run.optim, [model.get_parameter(name).numel() for name in moving])
        weights = replace(weights, small_states=states)
    return replace(load, weights=weights)


def _answered(stage: StagePlan, question: PlanRequest) -> StagePlan:
    hardware = Hardware(device(question.device), question.dtype, question.assume)
    found = [estimate(stage.load, way, gpus, hardware) for gpus in question.gpus for way in STRATEGIES]
    return replace(
        stage,
        estimates=[one for one in found if one is not None],
        smallest={way: smallest(stage.load, way, hardware) for way in STRATEGIES},
        breaks={way: breaks_first(stage.load, way, hardware) for way in STRATEGIES},
    )
