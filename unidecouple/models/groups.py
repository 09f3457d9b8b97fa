"""The group of each token by its labels (task or modality)."""

from __future__ import annotations

from torch import Tensor

from unidecouple.batch import TASK_KEYS, Modality, Task

GROUP_NAMES: dict[str, tuple[str, ...]] = {
    "task": TASK_KEYS,
    "modality": ("text", "image"),
    "image_out": ("und", "gen"),
    "type": tuple(modality.name.lower() for modality in Modality),
}
"""Names of the groups in recipes, in order, by ``group_by``."""

PRIVATE: dict[str, dict[Task, int]] = {
    "task": {Task.MMU: 0, Task.T2I: 1},
    "modality": {},
    "image_out": {Task.T2I: 1},
    "type": {Task.MMU: 1, Task.T2I: 2},
}
"""Tasks with a group that serves no other task, and that group, by ``group_by``."""

LAYER_PARTS = ("attention", "ffn", "norms")
"""Parts of a decoder layer that may have weights per group."""


def token_groups(group_by: str, task_ids: Tensor | None, modality_ids: Tensor | None) -> Tensor | None:
    """Return the group of each token: 0 (understanding, text) or 1 (generation, image); for "type", one per modality.

    Args:
        group_by: "task": one group per task; "modality": all image tokens against text (Mixture-of-Transformers, arXiv
            2411.04996); "image_out": image tokens to be generated against all else (arXiv 2505.14683); "type": text, image tokens
            to be understood, image tokens to be generated (arXiv 2607.00293, section 3.2.2).
        task_ids: int64 ``Task`` of each token, any shape.
        modality_ids: int64 ``Modality`` of each token, any shape.

    Returns:
        int64 in the shape of the labels it reads, or None where they are missing.
    """
    if group_by == "task":
        return task_ids
    if modality_ids is None:
        return None
    if group_by == "type":
        return modality_ids
    image_out = modality_ids == Modality.IMAGE_OUT
    return (image_out if group_by == "image_out" else image_out | (modality_ids == Modality.IMAGE_IN)).long()
