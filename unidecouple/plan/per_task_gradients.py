"""Size of per-task gradients, which some methods keep until they combine them: the weights that each loss reaches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from math import prod

from unidecouple.batch import Task
from unidecouple.methods.objective import Objective
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.plan.batch_shapes import BatchShape
from unidecouple.plan.op_trace import Shape

Reached = Callable[[tuple[BatchShape, ...], tuple[Task, ...]], Set[str]]
"""(micro-batches, tasks whose losses are computed) -> names of the weights that train and are used."""


def count_per_task_gradients(
    text: UniLlamaConfig,
    shapes: Mapping[str, Shape],
    step: Sequence[BatchShape],
    tasks: Sequence[Task],
    objective: Objective,
    reached: Reached,
) -> tuple[int, int]:
    """Return (floats, tensors) of the gradients of ``step`` that ``train/gradients.py`` keeps: one per loss and weight it reaches.

    The loss of one of ``tasks`` reaches the weights that its samples use and, with zeros, its head if there are none. Group choices
    pass no gradient, so that task-aware routers get the group loss alone. Losses of no task have a separate pass.
    """
    whole, passes = tuple(step), []
    auxiliary = {loss.kind for loss in objective.auxiliary if getattr(loss, "coeff", 0)}
    for task in tasks:
        mine = tuple(part for part in whole if part.counted and part.task is task)
        met = reached(mine, (task,)) if mine else reached(whole, (task,)) - reached(whole, ())
        passes.append({name for name in met if not _routes_tasks(name)})
    everything = reached(whole, tuple(tasks))
    routers = {name for name in everything if "group_router" in auxiliary and _routes_tasks(name)}
    balanced = "load_balance" in auxiliary and text.ffn != "dense"
    passes.append(routers | {name for name in everything if balanced and _before_the_last_gate(name, text)})
    kept = [name for one in passes for name in one]
    return sum(prod(shapes[name]) for name in kept), len(kept)


def _routes_tasks(name: str) -> bool:
    return ".mlp.router." in name or ".context_router." in name


def _before_the_last_gate(name: str, text: UniLlamaConfig) -> bool:
    """Whether the load-balance loss reaches a weight: any below the last mixture's gate."""
    last = f".layers.{text.num_hidden_layers - 1}.mlp."
    after = name.startswith(("lm_head.", "model.generation_head.", "model.language_model.norm."))
    return not after and not _routes_tasks(name) and (last not in name or f"{last}gate." in name)
