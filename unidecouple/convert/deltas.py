"""Weights of one task (``models/deltas.py``) merged into the layers' own: what serves one task alone, as a dense model."""

from __future__ import annotations

import re

from torch import Tensor

from unidecouple.batch import Task
from unidecouple.convert.parts import Part
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.models.deltas import DELTAS, HEAD, make_delta

_DECODER = "model.language_model."
_NAME = re.compile(rf"^(?P<module>.+)\.{DELTAS}\.(?P<task>\w+)\.(?P<leaf>\w+)$")


def delta_names(module: str, task: str) -> str:
    """Prefix of the weights of ``task`` at ``module`` (as in ``task_deltas``), in a checkpoint."""
    return f"{full_name(module)}.{DELTAS}.{task}."


def full_name(module: str) -> str:
    """A checkpoint's name of a ``module`` of ``task_deltas``."""
    return module if module == HEAD else f"{_DECODER}{module}"


def without_deltas(part: Part, task: Task, text: UniLlamaConfig) -> Part:
    """The weights that serve ``task``: its deltas merged, the other task's dropped."""
    out = {name: tensor for name, tensor in part.items() if not _NAME.match(name)}
    mine: dict[str, dict[str, Tensor]] = {}
    for name, tensor in part.items():
        if (match := _NAME.match(name)) and match["task"] == task.key:
            mine.setdefault(match["module"], {})[match["leaf"]] = tensor
    for module, leaves in mine.items():
        name = f"{module}.weight"
        form = text.task_deltas[task.key][module.removeprefix(_DECODER)]
        if any(tensor.is_meta for tensor in leaves.values()):
            continue  # shapes alone, which stay
        delta = make_delta(form, tuple(out[name].shape))
        delta.load_state_dict(leaves, assign=True)
        out[name] = delta.merged(out[name]).detach()
    return out
