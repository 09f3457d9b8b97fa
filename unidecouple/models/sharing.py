"""Which rows of stacked weights are a group's of tokens, which are a task's own, and where the tasks can meet."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from unidecouple.batch import Task
from unidecouple.models.decoder import UniLlamaModel
from unidecouple.models.groups import PRIVATE
from unidecouple.models.lora import LoraLinear
from unidecouple.models.moe import MixtureOfExperts
from unidecouple.models.router import spans
from unidecouple.models.untied import UniRMSNorm, UntiedLinear


def group_rows(model: nn.Module) -> Iterator[tuple[nn.Parameter, tuple[range, ...]]]:
    """Stacked weights in which each group of tokens has rows of its own, and those rows, in the order of ``GROUP_NAMES``."""
    for module in model.modules():
        if isinstance(module, MixtureOfExperts) and module.num_groups > 1:
            yield from module.group_rows()
        elif isinstance(module, LoraLinear) and module.groups == len(Task):
            yield from ((pair, spans([1] * module.groups)) for pair in (module.lora_A, module.lora_B))
        elif isinstance(module, (UntiedLinear, UniRMSNorm)) and module.sets == len(Task):
            yield from ((weight, spans([1] * module.sets)) for weight in module.parameters())


def group_by_of(model: nn.Module) -> str:
    """What ``model`` puts tokens into groups by, see ``GROUP_NAMES``."""
    return next(module.config.group_by for module in model.modules() if isinstance(module, UniLlamaModel))


def task_rows(model: nn.Module) -> Iterator[tuple[nn.Parameter, dict[Task, range]]]:
    """Stacked weights in which a task has rows that are its own, and which rows those are.

    A group's rows are a task's own only if the way that tokens are split gives it a group (``PRIVATE``).
    """
    private = PRIVATE[group_by_of(model)]
    for weight, rows in group_rows(model):
        yield weight, {task: rows[group] for task, group in private.items()}


def common_rows(model: nn.Module) -> dict[int, list[int]]:
    """Rows of each weight of ``task_rows`` that are no task's own, by the weight's identity; other weights are common whole."""
    return {
        id(weight): [row for row in range(len(weight)) if not any(row in own for own in rows.values())]
        for weight, rows in task_rows(model)
    }


def unshared(model: nn.Module) -> set[int]:
    """Identities of the weights whose every row is one task's own, so that the tasks do not meet in them.

    But for the first token: it counts as understanding (see ``Task``), so where tokens are split by task, generation's loss teaches
    understanding's rows a little, through what its tokens attend to there.
    """
    return {weight for weight, rows in common_rows(model).items() if not rows}
