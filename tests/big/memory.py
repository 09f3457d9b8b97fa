"""Peak memory of real training steps on a CPU beside what the plan computes, each case in a process of its own (Linux).

    PYTHONPATH=tests python tests/big/memory.py [--size 1GB] [--case NAME]

The model has 1.2 GB of weights; ``--size tiny`` does the same in seconds, where the process outweighs the model. Measured are the
resident memory at the peak of two steps, less that of the process before it has a model. glibc keeps freed blocks of up to 32 MB
and fragments them (0.9 GB of 6.8 in the dense case), so each process is started with a threshold above which a block goes back to
the system as soon as it is freed. The exit status is 1 where they differ by more than 15%.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from measured_step import micro_batches
from step_settings import step_settings
from unidecouple.batch import JointBatch, Task
from unidecouple.data.sequences import QAPair, SequenceBuilder, collate
from unidecouple.methods.objective import Objective
from unidecouple.methods.optimizers import make_optimizer
from unidecouple.methods.stage import Lora, Stage
from unidecouple.methods.structure import Dense, Structure, TaskAwareMoE
from unidecouple.models.tiny import TinySize, tiny_config, tiny_model, tiny_processor
from unidecouple.plan.stages import apply_run_settings, stage_load
from unidecouple.plan.strategies import Placement, memory
from unidecouple.run import RunConfig
from unidecouple.train.build import add_lora, restructure
from unidecouple.train.freezing import compress_frozen
from unidecouple.train.step import train_step
from unidecouple.train.trainable import make_param_groups, train_present_rows

SIZES = {
    "1GB": TinySize(hidden_size=1280, num_hidden_layers=14, num_attention_heads=10, intermediate_size=3456),
    "tiny": TinySize(),
}
LORA = Lora(16, 32.0, ("attention", "mlp"))
TOLERANCE = 0.15


@dataclass(frozen=True)
class Case:
    """What is trained, and how memory is saved."""

    stage: Stage
    structure: Structure = field(default_factory=Dense)
    quantize_frozen: str | None = None
    optim: str = "adamw_torch_fused"
    checkpointing: bool = False


CASES = {
    "dense": Case(Stage(train={"attention": 1, "ffn": 1})),
    "dense_8bit": Case(Stage(train={"attention": 1, "ffn": 1}), optim="adamw_8bit", checkpointing=True),
    "lora": Case(Stage(train={"lora": 1}, lora=LORA)),
    "lora_int8": Case(Stage(train={"lora": 1}, lora=LORA), quantize_frozen="int8", checkpointing=True),
    "lora_nf4": Case(Stage(train={"lora": 1}, lora=LORA), quantize_frozen="nf4", optim="adamw_8bit"),
    "experts_of_one_task": Case(
        Stage(train={"experts": 1}, tasks="t2i", routing="label"), TaskAwareMoE(experts_per_group=1), "nf4", "adamw_8bit"
    ),
}


def resident(field: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" at the peak since ``forget_peak``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def forget_peak() -> None:
    """Let the peak of resident memory start anew."""
    Path("/proc/self/clear_refs").write_text("5")


def batches(builder: SequenceBuilder, tokens: int, codes: int, tasks: tuple[Task, ...]) -> JointBatch:
    picture, pad = np.zeros((64, 64, 3), np.uint8), builder.tokenizer.pad_token_id
    talk = builder.understanding(picture, [QAPair("pope", "is there a cow in the image ?", "yes")] * 8)
    drawn = builder.generation("a photo of a blue pig", [n % codes for n in range(tokens)])
    every = {Task.MMU: collate([talk] * 8, pad), Task.T2I: collate([drawn] * 8, pad)}
    return tuple(every[task] for task in tasks)


def measure(case: Case, size: TinySize) -> tuple[int, int]:
    """Bytes at the peak of two steps, measured and planned."""
    processor = tiny_processor(("is", "there", "a", "cow", "in", "the", "image", "?", "yes", "photo", "of", "blue", "pig"), size)
    if case.optim == "adamw_8bit" or case.quantize_frozen in ("int8", "nf4"):
        import bitsandbytes  # noqa: F401  # its libraries are no model's memory
    baseline = resident("VmRSS")
    stage, run = case.stage, RunConfig(stages=(case.stage,), quantize_frozen=case.quantize_frozen, optim=case.optim)  # type: ignore[arg-type]
    model = tiny_model(tiny_config(processor.tokenizer, size), seed=0)
    if not isinstance(case.structure, Dense):
        model = restructure(model, case.structure, 0)
    if stage.lora is not None:
        model = add_lora(model, stage.lora, 0)
    batch = batches(SequenceBuilder(processor), model.num_image_tokens, model.num_codes, stage.of(tuple(Task)))
    load = apply_run_settings(run, model, stage, stage_load(model, stage, micro_batches(batch), 4))
    planned = memory(Placement("ddp", 1, {"both": 1}), load.weights, load.trace_ops(load.step), case.checkpointing).total
    with tempfile.TemporaryDirectory() as folder:
        if run.quantize_frozen:
            compress_frozen(model, run.quantize_frozen, run.stages, Path(folder), first=True)
        groups = make_param_groups(model, stage.train, 1e-4)
        train_present_rows(model, groups, [task for task in Task if task not in stage.of(tuple(Task))])
        if case.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.disable_input_require_grads()
        optimizer, settings = (
            make_optimizer(run.optim, groups, 0.0),
            step_settings(Objective(), stage.of(tuple(Task)), stage.routing),
        )
        model.train()
        model.model.vqmodel.eval()
        forget_peak()
        for step in (1, 2):
            train_step(model, optimizer, [batch], settings, step)
        return resident("VmHWM") - baseline, planned


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="1GB")
    parser.add_argument("--case", choices=CASES, help="this one, in this process (default: all, each in a process of its own)")
    arguments = parser.parse_args()
    if arguments.case is None:
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
        each = ([sys.executable, __file__, "--size", arguments.size, "--case", name] for name in CASES)
        return max(subprocess.run(command, env=environment, check=False).returncode for command in each)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    measured, planned = measure(CASES[arguments.case], SIZES[arguments.size])
    off = measured / planned - 1
    print(f"{arguments.case}: {measured / 1e9:.2f} GB measured, {planned / 1e9:.2f} GB planned, {off:+.0%}", flush=True)
    return int(abs(off) > TOLERANCE and arguments.size != "tiny")


if __name__ == "__main__":
    sys.exit(main())
