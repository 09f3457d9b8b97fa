"""Which group a token belongs to where that is told, not learned."""

from __future__ import annotations

from torch import Tensor

from unidecouple.batch import TASK_KEYS, Modality, Task

GROUP_NAMES: dict[str, tuple[str, ...]] = {
    "task": TASK_KEYS,
    "modality": ("text", "image"),
    "drawn": ("und", "gen"),
    "type": tuple(modality.name.lower() for modality in Modality),
}
"""What the groups of each split are called in recipes, in their order."""

PRIVATE: dict[str, dict[Task, int]] = {
    "task": {Task.MMU: 0, Task.T2I: 1},
    "modality": {},
    "drawn": {Task.T2I: 1},
    "type": {Task.MMU: 1, Task.T2I: 2},
}
"""By split, the tasks that have a group which serves no other, and that group. Both tasks have text; images are seen and drawn."""


def token_groups(split: str, task_ids: Tensor | None, modality_ids: Tensor | None) -> Tensor | None:
    """Group of each token: 0 (understanding, text) or 1 (generation, image); one a modality where the split is "type".

    Args:
        split: "task": a task is a group; "modality": pictures, seen or drawn, against text (Mixture-of-Transformers, arXiv
            2411.04996); "drawn": image tokens to be generated against all else (arXiv 2505.14683); "type": text, pictures
            seen, pictures drawn (arXiv 2607.00293, section 3.2.2).
        task_ids: int64 ``Task`` of each token, any shape.
        modality_ids: int64 ``Modality`` of each token, any shape.

    Returns:
        int64 in the shape of what the split reads, or None where that is not given.
    """
    if split == "task":
        return task_ids
    if modality_ids is None:
        return None
    if split == "type":
        return modality_ids
    drawn = modality_ids == Modality.IMAGE_OUT
    return (drawn if split == "drawn" else drawn | (modality_ids == Modality.IMAGE_IN)).long()
