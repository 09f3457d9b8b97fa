"""Checkpoints: model, processor, optimizer and step, written whole or not at all, in safetensors and json only."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from unidecouple.files import atomic_directory
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.processing import UniJanusProcessor

_NAME = re.compile(r"^checkpoint-(\d+)$")


@dataclass(frozen=True)
class TrainerState:
    """Where training stands: steps done in the run, the stage they end in, and steps done in that stage."""

    step: int
    stage: int
    stage_step: int


def save(
    folder: Path,
    model: UniJanusForConditionalGeneration,
    processor: UniJanusProcessor,
    state: TrainerState,
    optimizer: torch.optim.Optimizer | None,
    keep: int,
) -> Path:
    """Write ``folder/checkpoint-<step>`` and drop all but the newest ``keep`` afterwards.

    Without ``optimizer`` (the stage is over) the next stage starts with a new one.
    """
    target = folder / f"checkpoint-{state.step}"
    with atomic_directory(target) as staging:
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        if optimizer is not None:
            save_file(_optimizer_tensors(optimizer), staging / "optimizer.safetensors")
        (staging / "trainer_state.json").write_text(json.dumps(vars(state)))
    for old in all_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def all_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints in ``folder``, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NAME.match(path.name))]
    return [path for _, path in sorted(found)]


def read_state(checkpoint: Path) -> TrainerState:
    """The trainer state saved in ``checkpoint``."""
    return TrainerState(**json.loads((checkpoint / "trainer_state.json").read_text()))


def restore_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer) -> None:
    """Load AdamW's moments by parameter name into ``optimizer``, whose groups carry "names"."""
    tensors = load_file(checkpoint / "optimizer.safetensors")
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            optimizer.state[parameter] = {key: tensors[f"{name}|{key}"].clone() for key in ("step", "exp_avg", "exp_avg_sq")}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{name}|{key}"] = value
    return tensors
