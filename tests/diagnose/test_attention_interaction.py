"""Interaction curves: mean and standard error by hand, samples that do not count, the correlation over depth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

import pytest
import torch

from unidecouple.batch import Batch, JointBatch, Task
from unidecouple.diagnose.attention_interaction import LayerInteraction, attention_interaction, depth_correlation
from unidecouple.models.janus import UniJanusForConditionalGeneration

MakeModel = Callable[..., UniJanusForConditionalGeneration]


def row_of(batch: Batch, row: int) -> JointBatch:
    return (Batch(**{name: None if part is None else part[row : row + 1] for name, part in vars(batch).items()}),)


def test_mean_and_error_by_hand(make_model: MakeModel, joint_batch: JointBatch) -> None:
    """Understanding in two batches of a row each; generation has a whole prompt in the first of its three batches and the last."""
    model = make_model()
    batches = {Task.MMU: (0, 1, 1), Task.T2I: (0, 1, 0)}

    def batch_of(task: Task, number: int) -> JointBatch:
        return row_of(joint_batch[task], batches[task][number])

    rows = attention_interaction(model, batch_of, batches=3)
    assert [(row.layer, row.task) for row in rows] == [(0, "mmu"), (1, "mmu"), (0, "t2i"), (1, "t2i")]
    with torch.no_grad():
        one, two = (model(batch=row_of(joint_batch[0], row), interaction=True).interaction[0].intensity[:, 0] for row in range(2))
        drawn = model(batch=row_of(joint_batch[1], 0), interaction=True).interaction[0].intensity[:, 0]
    for layer in range(2):
        a, b = float(one[layer]), float(two[layer])
        assert a != pytest.approx(b)
        assert rows[layer].intensity == pytest.approx((a + 2 * b) / 3)
        assert rows[layer].error == pytest.approx(abs(a - b) / 3**0.5 / 3**0.5)  # std of (a, b, b) is |a - b| / sqrt(3)
        assert rows[2 + layer].intensity == pytest.approx(float(drawn[layer]))
        assert rows[2 + layer].error == pytest.approx(0.0, abs=1e-7), "a batch of dropped prompts counts for nothing"
    assert asdict(rows[0]).keys() == {"layer", "task", "intensity", "error"}
    assert not torch.is_grad_enabled() or all(p.grad is None for p in model.parameters())


def test_a_task_without_samples_has_no_curve(make_model: MakeModel, joint_batch: JointBatch) -> None:
    silent = replace(joint_batch[0], labels=torch.full_like(joint_batch[0].labels, -100))
    rows = attention_interaction(make_model(), lambda task, number: (silent if task is Task.MMU else joint_batch[1],), batches=2)
    assert {row.task for row in rows} == {"t2i"}
    assert depth_correlation(rows) is None


def curves(mmu: list[float], t2i: list[float]) -> list[LayerInteraction]:
    both = {"mmu": mmu, "t2i": t2i}
    return [LayerInteraction(layer, task, value, 0.0) for task, curve in both.items() for layer, value in enumerate(curve)]


def test_correlation_by_hand() -> None:
    assert depth_correlation(curves([0.1, 0.2, 0.3], [0.9, 0.5, 0.1])) == pytest.approx(-1)
    assert depth_correlation(curves([0.1, 0.2, 0.3], [0.0, 0.3, 0.0])) == pytest.approx(0, abs=1e-12)
    assert depth_correlation(curves([0.0, 0.2, 0.1, 0.5], [0.1, 0.4, 0.1, 0.2])) == pytest.approx(0.03 / (0.14 * 0.06) ** 0.5)
    assert depth_correlation(curves([0.1, 0.2], [0.9, 0.5])) is None
    assert depth_correlation(curves([0.1, 0.1, 0.1], [0.9, 0.5, 0.1])) is None
