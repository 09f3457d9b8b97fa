"""Training of untied layers: what belongs to a task that has no data does not move, what both use does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from step_settings import step_settings
from unidecouple.batch import Batch, Task
from unidecouple.methods.objective import Objective
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.train.step import train_step
from unidecouple.train.trainable import make_param_groups

MakeModel = Callable[..., UniJanusForConditionalGeneration]


def moved_sets(model: UniJanusForConditionalGeneration, batch: Batch, task: Task) -> dict[str, tuple[bool, ...]]:
    """Which of the two sets of each untied weight two steps on ``task`` alone moved."""
    groups = make_param_groups(model, {"attention": 1, "ffn": 1, "norms": 1}, 1e-2)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    names = [name for name, p in model.decoder.named_parameters() if p.requires_grad]
    before = {name: model.decoder.get_parameter(name).detach().clone() for name in names}
    for _ in range(2):
        train_step(model.train(), optimizer, [(batch,)], step_settings(Objective(auxiliary=()), [task], None, 1.0))
    after: dict[str, Tensor] = {name: model.decoder.get_parameter(name).detach() for name in names}
    return {name: tuple(not torch.equal(a, b) for a, b in zip(before[name], after[name], strict=True)) for name in names}


@pytest.mark.parametrize(
    ("group_by", "task", "moves"),
    [
        ("task", Task.MMU, (True, False)),
        ("task", Task.T2I, (False, True)),  # though its first token goes through the other set
        ("image_out", Task.MMU, (True, False)),
        ("image_out", Task.T2I, (True, True)),  # prompts use the base set: nothing of understanding's own to hold
        ("modality", Task.MMU, (True, True)),
        ("modality", Task.T2I, (True, True)),
    ],
)
def test_sets_of_absent_tasks_rest(
    make_model: MakeModel, joint_batch: tuple[Batch, Batch], group_by: str, task: Task, moves: tuple[bool, bool]
) -> None:
    model = make_model(per_group_layers=[0, 1], per_group_norm=True, group_by=group_by)
    moved = moved_sets(model, joint_batch[task], task)
    assert len(moved) == 2 * 9 + 1
    assert {sets for name, sets in moved.items() if name.startswith("layers.0.")} == {moves}
    last = {sets for name, sets in moved.items() if name.endswith("o_proj.weight") or ".mlp." in name}
    assert last <= {moves, (False, True), (True, False)}  # the last layer's tokens that predict nothing send no gradient
