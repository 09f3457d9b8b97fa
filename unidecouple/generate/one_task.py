"""A model that serves one task only: its group of experts, low-rank updates merged, no routing between tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from unidecouple.batch import Task
from unidecouple.convert.load import assemble, fill_buffers, open_checkpoint
from unidecouple.convert.parts import Part, split_into_parts
from unidecouple.convert.steps import Conversion, Step, changes
from unidecouple.models.base import UnifiedModel
from unidecouple.models.families import UnifiedConfig
from unidecouple.models.processing import UnifiedProcessor


@torch.no_grad()
def one_task(model: UnifiedModel, task: Task) -> UnifiedModel:
    """Return the part of ``model`` that serves ``task``, as ``unidecouple convert --task --merge-lora`` would write it.

    Tokens are routed by label. Unchanged weights are shared with ``model``, not copied; a model that serves both tasks with the
    same weights, or with group ids as input (dense, untied), is returned itself.
    """
    steps = _steps(model.config, task)
    if not steps:
        return model
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    out = _changed(state, lambda names: {name: state[name] for name in names}, steps)
    with torch.device("meta"):
        slim = type(model)(steps[-1].config)
    slim.load_state_dict(out, assign=True)
    fill_buffers(slim, model)
    slim.generation_config = model.generation_config
    return slim.requires_grad_(requires_grad=False).eval()


@torch.no_grad()
def load_one_task(name_or_path: str, task: Task, dtype: torch.dtype = torch.float32) -> tuple[UnifiedModel, UnifiedProcessor]:
    """Return ``one_task`` of a checkpoint; one layer at a time is read and reduced, so the whole is never in memory.

    Files are memory-mapped; understanding reads only what it keeps. Generation also reads understanding's experts, for the BOS,
    which counts as understanding and passes through them once (``BosKeyValues``).

    Raises:
        ValueError: as ``load``; a weight is missing or of another shape than config.json says.
    """
    config, weights, processor = open_checkpoint(name_or_path)
    steps = _steps(config, task)

    def read(names: Sequence[str]) -> Part:
        return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.read(names).items()}

    state = _changed(weights.shapes, read, steps)
    slim = steps[-1].config if steps else config
    slim.dtype = dtype
    return assemble(slim, state, weights.start.parent, dtype).requires_grad_(requires_grad=False), processor


def _steps(config: UnifiedConfig, task: Task) -> list[Step]:
    text = config.text_config
    parts_of_a_task = text.ffn == "ta_moe" or bool(text.lora_per_task or text.task_deltas)
    return changes(config, Conversion(task=task if parts_of_a_task else None, merge=True))


def _changed(names: Iterable[str], read: Callable[[Sequence[str]], Part], steps: Sequence[Step]) -> Part:
    """All weights after ``steps``, part by part."""
    out: Part = {}
    for some in split_into_parts(names):
        part = read(some)
        for step in steps:
            part = step.transform(part)
        out |= part
    return out
