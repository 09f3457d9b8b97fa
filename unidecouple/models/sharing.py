"""Rows of stacked weights per group of tokens, rows private to a task, and rows that both tasks share."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from unidecouple.batch import Task
from unidecouple.models.deltas import DELTAS
from unidecouple.models.groups import PRIVATE
from unidecouple.models.lora import LoraLinear, MixedLoraLinear
from unidecouple.models.router import consecutive_ranges


def weights_and_group_rows(model: nn.Module) -> Iterator[tuple[nn.Parameter, tuple[range, ...]]]:
    """Yield stacked weights with separate rows per group, and those rows, in the order of ``GROUP_NAMES``."""
    from unidecouple.models.moe import MixtureOfExperts
    from unidecouple.models.untied import UniRMSNorm, UntiedLinear  # imports transformers' models, seconds

    for name, module in model.named_modules():
        if name.rpartition(".")[0].endswith(f".{DELTAS}"):  # all rows are of one task
            of = Task[name.rpartition(".")[2].upper()]
            for weight in module.parameters():
                yield weight, tuple(range(len(weight) if task is of else 0) for task in Task)
        elif isinstance(module, MixtureOfExperts) and module.num_groups > 1:
            yield from module.weights_and_group_rows()
        elif isinstance(module, MixedLoraLinear) and module.by_modality:
            text = range(module.experts)
            image = range(module.experts, module.experts + 1)
            yield from ((pair, (text, image)) for pair in (module.lora_A, module.lora_B))
            yield module.lora_R, (text, range(0))
        elif isinstance(module, LoraLinear) and module.groups == len(Task):
            yield from ((pair, consecutive_ranges([1] * module.groups)) for pair in (module.lora_A, module.lora_B))
        elif isinstance(module, (UntiedLinear, UniRMSNorm)) and module.num_sets == len(Task):
            yield from ((weight, consecutive_ranges([1] * module.num_sets)) for weight in module.parameters())


def group_by_of(model: nn.Module) -> str:
    """``group_by`` of the model's configuration."""
    from unidecouple.models.decoder import UniLlamaModel  # imports transformers' models, seconds

    return next(module.config.group_by for module in model.modules() if isinstance(module, UniLlamaModel))


def weights_and_task_rows(model: nn.Module) -> Iterator[tuple[nn.Parameter, dict[Task, range]]]:
    """Yield stacked weights with rows private to a task, and those rows; its group must serve no other task (``PRIVATE``)."""
    private = PRIVATE[group_by_of(model)]
    for weight, rows in weights_and_group_rows(model):
        yield weight, {task: rows[group] for task, group in private.items()}


def common_rows(model: nn.Module) -> dict[int, list[int]]:
    """Return rows private to no task, by ``id`` of each weight of ``weights_and_task_rows``; all other weights are shared."""
    return {
        id(weight): [row for row in range(len(weight)) if not any(row in own for own in rows.values())]
        for weight, rows in weights_and_task_rows(model)
    }


def unshared(model: nn.Module) -> set[int]:
    """``id`` of the weights whose every row is private to one task.

    One exception: the BOS counts as understanding (see ``Task``). With groups per task, generation's loss therefore reaches
    understanding's rows through attention to that token.
    """
    return {weight for weight, rows in common_rows(model).items() if not rows}
