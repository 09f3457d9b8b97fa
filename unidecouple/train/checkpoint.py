"""Checkpoints: model, processor, optimizer, averages and step, written atomically, in safetensors and json only."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from unidecouple.convert.licences import carry_licences
from unidecouple.convert.stored import all_checkpoints, source_folder
from unidecouple.files import remove_directory
from unidecouple.methods.optimizers import fresh_state, saved_state, set_step_counts
from unidecouple.models.experts import TrainedRows
from unidecouple.train.ema import AVERAGES, EMA
from unidecouple.train.faults import naming_broken_file
from unidecouple.train.meter import ResourceUsage
from unidecouple.train.parallel import Parallel

if TYPE_CHECKING:
    from unidecouple.models.processing import UnifiedProcessor

OPTIMIZER = "optimizer.safetensors"


@dataclass(frozen=True)
class TrainerState:
    """Where training stands.

    Attributes:
        step: done in the run.
        stage: that they end in.
        stage_step: done in that stage.
        tokens: seen, by task.
        spent: fields of ``meter.ResourceUsage`` so far; empty in checkpoints of earlier versions.
    """

    step: int
    stage: int
    stage_step: int
    tokens: dict[str, int] = field(default_factory=dict)
    spent: dict[str, Any] = field(default_factory=dict)


def save(
    folder: Path,
    wrapped: nn.Module,
    processor: UnifiedProcessor,
    state: TrainerState,
    optimizer: torch.optim.Optimizer | None,
    averages: EMA,
    parallel: Parallel,
    base: str,
) -> None:
    """Write ``folder/checkpoint-<step>``, all processes together.

    Licences of ``base``, the checkpoint that the run started from, travel with it.

    The files do not depend on how many processes wrote them. Without ``optimizer`` (the stage is over) the next stage starts
    with a new one.
    """
    with parallel.folder(folder / f"checkpoint-{state.step}") as staging:
        parallel.save_weights(staging, wrapped)
        if optimizer is not None and optimizer.state:
            parallel.save_tensors(staging / OPTIMIZER, _optimizer_tensors(optimizer))
        if averages.means:
            parallel.save_tensors(staging / AVERAGES, averages.tensors())
        if parallel.first:
            processor.save_pretrained(staging)
            if (source := _licensed(folder, base)) is not None:
                carry_licences(source, staging)
            (staging / "trainer_state.json").write_text(json.dumps(vars(state)))


def prune(folder: Path, keep: int, best: int | None = None) -> None:
    """Drop all checkpoints but the newest ``keep``, all if that is 0, and the one of step ``best``."""
    for old in all_checkpoints(folder)[:-keep]:
        if old.name != f"checkpoint-{best}":
            remove_directory(old)


def _licensed(folder: Path, base: str) -> Path | None:
    """Where licences are copied from: the run's newest checkpoint, at first its base, unless that is gone."""
    if there := all_checkpoints(folder):
        return there[-1]
    try:
        return source_folder(base, weights=False)
    except ValueError:
        return None


def sweep(folder: Path) -> None:
    """Delete what a killed process left of checkpoints that it was writing or deleting."""
    for ending in ("tmp", "old"):
        for path in folder.glob(f".checkpoint-*.{ending}"):
            shutil.rmtree(path)


def read_state(checkpoint: Path) -> TrainerState:
    """The trainer state saved in ``checkpoint``.

    Raises:
        ValueError: it is missing or broken, or of another step than the folder's name.
    """
    path = checkpoint / "trainer_state.json"
    with naming_broken_file(path):
        state = TrainerState(**json.loads(path.read_bytes()))
        counts = (state.step, state.stage, state.stage_step, *state.tokens.values())
        if not all(type(count) is int and count >= 0 for count in counts) or not isinstance(state.spent, dict):
            raise ValueError("step, stage, stage_step and tokens must be whole numbers from 0")
        if checkpoint.name != f"checkpoint-{state.step}":
            raise ValueError(f"it is of step {state.step}")
        ResourceUsage(**state.spent)
        return state


@torch.no_grad()
def restore_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer, parallel: Parallel) -> None:
    """Load AdamW's moments by parameter name into ``optimizer``, whose groups carry "names".

    A weight that never had a gradient has no moments.

    Raises:
        ValueError: they are missing or broken.
    """
    path = checkpoint / OPTIMIZER
    with naming_broken_file(path), safe_open(path, framework="pt") as file:
        saved = {name: file.get_slice(name).get_shape() for name in list(file.keys())}
    tensors: dict[str, Tensor] = {}
    parts: list[tuple[TrainedRows, Tensor, Tensor]] = []
    for place, group in enumerate(optimizer.param_groups):
        for index, (name, parameter) in enumerate(zip(group["names"], group["params"], strict=True)):
            if f"{name}|step" in saved:
                for key, value in fresh_state(optimizer, place, index).items():
                    whole = tensors[f"{name}|{key}"] = _whole(parameter, value)
                    parts += [(parameter, value, whole)] if isinstance(parameter, TrainedRows) and value.ndim else []
    with naming_broken_file(path):
        shapes = {name: list(value.shape) for name, value in tensors.items()}
        if shapes != saved:
            wrong = sorted(name for name in {*shapes, *saved} if shapes.get(name) != saved.get(name))
            raise ValueError(f"it is of other weights: {wrong[0]} is {saved.get(wrong[0])}, not {shapes.get(wrong[0])}")
        if not saved:
            raise ValueError("it is empty")
        parallel.load_tensors(path, tensors)
    for parameter, value, whole in parts:
        parameter.narrow_to(value, whole)
    set_step_counts(optimizer, tensors)


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in saved_state(optimizer.state.get(parameter, {})).items():
                tensors[f"{name}|{key}"] = _whole(parameter, value)
    return tensors


def _whole(parameter: Tensor, value: Tensor) -> Tensor:
    """A state as it is saved: of all rows of a stacked weight, however many train; never a scalar.

    torch's distributed safetensors drop the value of a scalar (2.13). A scalar's memory is shared with the result.
    """
    if value.ndim == 0:
        return value.view(1)
    return parameter.widen(value) if isinstance(parameter, TrainedRows) else value
