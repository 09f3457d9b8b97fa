"""Runs of three steps for every member of the unions of structures and gradient methods, and who is let off what, and why."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from small_runs import load_copy
from step_settings import run_stages
from unidecouple.convert.load import load, load_shapes
from unidecouple.convert.stored import all_checkpoints
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.methods.gradient import GRADIENTS, MAOP, Gradient, TorchJDAggregator
from unidecouple.methods.stage import Lora, Stage
from unidecouple.methods.structure import STRUCTURES, MoE, MoT, Structure, TaskAwareMoE, UniX, UsagePartitioned
from unidecouple.models.base import UnifiedModel
from unidecouple.run import RunConfig
from unidecouple.source import data_source
from unidecouple.train.build import add_lora, apply_structure, restructure
from unidecouple.train.launch import processes
from unidecouple.train.parallel import Parallel
from unidecouple.train.sharded import Sharded
from unidecouple.train.stages import Trainer
from unidecouple.train.stop_request import InterruptedRunError
from unidecouple.world.settings import SyntheticData

STEPS, STOP = 3, 2

STRUCTURED: dict[str, Structure] = {kind().kind: kind() for kind in STRUCTURES} | {
    "mot drawn": MoT(group_by="image_out"),
    "mot task": MoT(group_by="task"),
    "mot task ffn": MoT(group_by="task", parts=("ffn",)),
    "ta_moe shared per task": TaskAwareMoE(task_routing="label", shared_expert_per_task=True),
    "ta_moe learned": TaskAwareMoE(context_router=True),
    "ta_moe": TaskAwareMoE(task_routing="label"),
    "unix across": UniX(across=True),
}
"""Every structure of the union as it is by default, and in the settings that decide which weights a token meets."""

COMBINED: dict[str, Gradient] = {kind().kind: kind() for kind in GRADIENTS} | {
    "maop": MAOP(parameters=("*",)),  # in so few steps the shared expert alone need not turn against its moment
    "torchjd GradDrop": TorchJDAggregator(name="GradDrop"),
}
"""Every gradient method of the union, and one that draws."""

UPDATES = "dense, low-rank updates by task"

NOTHING_PRIVATE = {
    "dense": "all weights serve both tasks",
    "moe": "no expert is a task's: any token may go to any",
    "mot": "split by modality: both tasks have text, and both have images",
    "unix": "split by modality",
    "i_lora": "every update serves all tokens",
    "mode": "split by modality",
    "unix across": "split by modality",
}
"""No task's private weights: nothing to hold where a task is absent, and no gradient of the other's to look for."""

MISROUTED = {
    "ta_moe learned": "a router that is still wrong sends a task's tokens to the other's experts; with labels it is ta_moe",
}
"""The other task's private weights may get a gradient through more than the first token."""

NOT_SHARDED = {
    "pcgrad": "needs each task's gradient whole, and with fsdp no process has it (refused, see test_gradients.py)",
    "mgda": "as pcgrad",
    "cagrad": "as pcgrad",
    "torchjd": "as pcgrad",
    "torchjd GradDrop": "as pcgrad",
}
"""Two processes share these with ddp; all else with fsdp, where more can go wrong."""


def started(model: UnifiedModel, name: str) -> UnifiedModel:
    """``model``, dense, as member ``name`` of ``STRUCTURED`` (or ``UPDATES``) starts from it, without data."""
    if name == UPDATES:
        targets = ("attention", "mlp")
        return add_lora(model, Lora(4, targets=targets, per_task=targets), 0)
    structure = STRUCTURED[name]
    if isinstance(structure, UsagePartitioned):
        mixture = restructure(model, MoE(), 0)
        text = mixture.config.text_config
        return restructure(mixture, structure, 0, [torch.arange(text.num_experts)] * len(text.mixture_layers))
    return restructure(model, structure, 0)


def runs(base: Path) -> dict[str, RunConfig]:
    """A run of each member from ``base``, all weights trained; what a structure is measured on comes before it."""
    plain = RunConfig(
        model_name_or_path=str(base),
        data=SyntheticData(pairs=24, scenes=24, t2i_batch_size=4, mmu_batch_size=4, turns=1),
        stages=(Stage(learning_rate=1e-3, train={"*": 1.0}),),
        max_steps=STEPS,
        save_steps=0,
        save_total_limit=9,
        diagnose=False,
        device="cpu",
    )
    found = {}
    for name in (*(kind().kind for kind in STRUCTURES), "mot task"):  # other settings change what is met, not how it trains
        structure, stages = STRUCTURED[name], plain.stages
        if isinstance(structure, UsagePartitioned):
            stages = (replace(plain.stages[0], share=0.25), replace(plain.stages[0], share=0.75, structure=structure))
        start: Structure = MoE() if isinstance(structure, UsagePartitioned) else structure
        found[name] = replace(plain, structure=start, stages=stages)
    for name, gradient in COMBINED.items():
        stages = (replace(plain.stages[0], gradient=gradient),)
        found[f"gradient {name}"] = replace(plain, structure=STRUCTURED["ta_moe"], stages=stages)
    return found


def trained(run: RunConfig, folder: Path, cache: Path, stop_after: int | None = None, parallel: Parallel | None = None) -> bool:
    """Train ``run`` as ``unidecouple train`` does, without scores; goes on in ``folder``. Whether it came to its end."""
    parallel, stop = parallel or Parallel(), threading.Event()
    resume = next(reversed(all_checkpoints(folder)), None)
    if parallel.holds_weights and resume is None:
        model, processor = load_copy(run.model_name_or_path)
    else:
        model, processor = (load if parallel.holds_weights else load_shapes)(str(resume or run.model_name_or_path))
    builder = SequenceBuilder(processor)
    with parallel.first_alone():
        source = data_source(run).open(run, model, processor, builder, cache, lambda what, done, of: None)
    if resume is None:
        model = apply_structure(model, run.structure, run.seed, source)

    def say(line: str) -> None:
        if stop_after is not None and line.startswith(f"step {stop_after}/"):
            stop.set()

    run = replace(run, logging_steps=1)
    try:
        run_stages(Trainer(run, model, processor, source, folder, say, stop=stop, parallel=parallel), resume)
    except InterruptedRunError:
        return False
    return True


def weights(folder: Path) -> dict[str, Tensor]:
    """Of the last checkpoint."""
    return load_file(all_checkpoints(folder)[-1] / "model.safetensors")


def way(name: str) -> type[Parallel]:
    """How two processes share the run called ``name``: with all its weights sharded, where that is possible."""
    return Parallel if name.removeprefix("gradient ") in NOT_SHARDED else Sharded


def train_all(base: Path, cache: Path, folder: Path) -> None:
    """Train all as one of several processes."""
    with processes("cpu", bf16=False, kind="ddp") as one:
        for name, run in runs(base).items():
            trained(run, folder / name, cache, parallel=way(name)(one.rank, one.size, one.device))
