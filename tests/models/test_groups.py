"""Which group a token belongs to: hand-made sequences, and what a model makes of a joint batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from unidecouple.batch import NO_IMAGE_TOKEN, Batch, Modality, Task
from unidecouple.models.groups import token_groups
from unidecouple.models.janus import UniJanusForConditionalGeneration

MakeModel = Callable[..., UniJanusForConditionalGeneration]

TEXT, SEEN, DRAWN = (int(kind) for kind in Modality)
MMU, T2I = (int(task) for task in Task)

MODALITIES = torch.tensor([[TEXT, SEEN, SEEN, TEXT, TEXT], [TEXT, TEXT, TEXT, DRAWN, DRAWN]])
TASKS = torch.tensor([[MMU, MMU, MMU, MMU, MMU], [MMU, T2I, T2I, T2I, T2I]])


@pytest.mark.parametrize(
    ("group_by", "groups"),
    [
        ("task", [[0, 0, 0, 0, 0], [0, 1, 1, 1, 1]]),
        ("modality", [[0, 1, 1, 0, 0], [0, 0, 0, 1, 1]]),
        ("image_out", [[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]]),
    ],
)
def test_groups_by_hand(group_by: str, groups: list[list[int]]) -> None:
    assert token_groups(group_by, TASKS, MODALITIES).tolist() == groups
    one = token_groups(group_by, TASKS[:1, :1], MODALITIES[:1, :1])
    assert one.tolist() == [[0]]


def test_what_is_not_given_tells_nothing() -> None:
    assert token_groups("task", None, MODALITIES) is None
    assert token_groups("modality", TASKS, None) is None
    assert token_groups("image_out", TASKS, None) is None


def test_modalities_of_a_joint_batch(make_model: MakeModel, joint_batch: tuple[Batch, Batch]) -> None:
    model = make_model()
    for batch in joint_batch:
        found = model.modality_ids(batch.input_ids, batch.image_tokens)
        assert torch.equal(found == DRAWN, batch.image_tokens != NO_IMAGE_TOKEN)
        pictures = 0 if batch.pixel_values is None else len(batch.pixel_values)
        assert (found == SEEN).sum() == pictures * model.config.vision_config.num_image_tokens
    both = torch.cat([model.modality_ids(batch.input_ids, batch.image_tokens).flatten() for batch in joint_batch])
    assert both.unique().tolist() == [TEXT, SEEN, DRAWN]
