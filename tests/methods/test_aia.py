"""The alignment loss: Huber and bands by hand, the published tables to the layer, parts of a step, and what a recipe may say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unidecouple import config
from unidecouple.batch import Batch, JointBatch, Task
from unidecouple.methods.objective import AttentionAlignment, Microbatch, Objective
from unidecouple.methods.objective.aia import PRESETS, AiaBand, AiaTargets, aia_loss
from unidecouple.models.interaction import Interaction
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.run import RunConfig
from unidecouple.train.parallel import Parallel
from unidecouple.train.step import count_totals

EVEN = (AiaBand(0.5, 0.1, 0.4), AiaBand(1.0, 0.05, 0.2))
TARGETS = AiaTargets(EVEN, EVEN)
DRAWN = Objective(mmu_coeff=0, t2i_coeff=0, auxiliary=(AttentionAlignment(mmu_coeff=2.0, t2i_coeff=3.0, targets=TARGETS),))


def measured(values: list[list[float]], tasks: list[int]) -> Interaction:
    return Interaction(torch.tensor(values, requires_grad=True), torch.tensor(tasks))


def test_by_hand() -> None:
    """Two layers, delta .1 and .05 at targets .4 and .2: offsets of .05 (square), .3 (straight), 0 and .05 (just square)."""
    one = measured([[0.45, 0.9, 0.7], [0.2, 0.9, 0.25]], [1, 0, 1])
    first = 0.05**2 / 2 + 0.0
    last = 0.1 * (0.3 - 0.05) + 0.05**2 / 2
    assert aia_loss([one], TARGETS, Task.T2I).item() == pytest.approx((first + last) / 2 / 2)
    assert aia_loss([one], TARGETS, Task.MMU).item() == pytest.approx((0.1 * (0.5 - 0.05) + 0.05 * (0.7 - 0.025)) / 2)
    assert aia_loss([one, one], TARGETS, Task.T2I).item() == pytest.approx((first + last) / 2 / 2), "a mean over batches together"
    assert aia_loss([one], TARGETS, Task.T2I, torch.tensor(8)).item() == pytest.approx((first + last) / 2 / 8)


def test_its_pull_is_bounded_and_none_at_the_target() -> None:
    one = measured([[0.4, 0.9, 0.0], [0.2, 0.21, 0.19]], [0, 0, 0])
    aia_loss([one], TARGETS, Task.MMU).backward()
    assert one.intensity.grad is not None
    torch.testing.assert_close(one.intensity.grad * 6, torch.tensor([[0.0, 0.1, -0.1], [0.0, 0.01, -0.01]]), atol=1e-6, rtol=1e-4)


def test_without_samples_it_is_zero_in_the_graph() -> None:
    empty = Interaction(torch.zeros(2, 0, requires_grad=True), torch.zeros(0, dtype=torch.long))
    for task, samples in ((Task.MMU, None), (Task.T2I, torch.tensor(0))):
        loss = aia_loss([empty], TARGETS, task, samples)
        assert loss.item() == 0.0
        assert loss.requires_grad


@pytest.mark.parametrize(
    ("name", "layers", "mmu", "t2i"),
    [
        ("janus_pro", 30, {0: (0.05, 0.1), 10: (0.05, 0.15), 20: (0.05, 0.3)}, {0: (0.2, 0.4), 10: (0.1, 0.4), 25: (0.05, 0.2)}),
        (
            "emu3",
            32,
            {0: (0.05, 0.1), 10: (0.05, 0.15), 20: (0.05, 0.3), 31: (0.05, 0.2)},
            {0: (0.2, 0.4), 10: (0.1, 0.4), 25: (0.05, 0.2)},
        ),
    ],
)
def test_presets_are_the_published_tables(
    name: str, layers: int, mmu: dict[int, tuple[float, float]], t2i: dict[int, tuple[float, float]]
) -> None:
    """Tables S4 and S5 of arXiv 2511.22663: first layer of each band -> (delta, T)."""
    for task, table in ((Task.MMU, mmu), (Task.T2I, t2i)):
        wanted = [table[max(start for start in table if start <= layer)] for layer in range(layers)]
        assert [(band.delta, band.target) for band in PRESETS[name].by_layer(task, layers)] == wanted


@pytest.mark.parametrize("layers", range(1, 65))
def test_every_layer_of_any_model_has_a_band(layers: int) -> None:
    for targets in (*PRESETS.values(), TARGETS):
        for task in Task:
            found = [targets.of(task).index(band) for band in targets.by_layer(task, layers)]
            assert len(found) == layers
            assert found == sorted(found)


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"until must lie in \(0, 1\]"):
        AiaBand(30, 0.1, 0.4)
    with pytest.raises(ValueError, match=r"bands of t2i end at \[0.5\]: let them rise, and the last one be 1"):
        AiaTargets(EVEN, EVEN[:1])
    with pytest.raises(ValueError, match=r"bands of mmu end at \[1.0, 0.5\]"):
        AiaTargets(EVEN[::-1], EVEN)
    recipe = tmp_path / "run.yaml"
    recipe.write_text("objective: {auxiliary: [{kind: attention_alignment, targets: janus}]}")
    with pytest.raises(config.ConfigError, match="did you mean 'janus_pro'"):
        config.load(RunConfig, [recipe])


def test_a_recipe_names_a_table_or_gives_bands(tmp_path: Path) -> None:
    recipe = tmp_path / "run.yaml"
    recipe.write_text("objective: {auxiliary: [{kind: attention_alignment, mmu_coeff: 0, t2i_coeff: 5, targets: emu3}]}")
    named = config.load(RunConfig, [recipe]).objective
    assert named.auxiliary[0].bands is PRESETS["emu3"]
    assert named.needs_attention_stats
    assert not Objective().needs_attention_stats
    band = "{until: 1, delta: 0.1, target: 0.3}"
    recipe.write_text(f"objective: {{auxiliary: [{{kind: attention_alignment, targets: {{mmu: [{band}], t2i: [{band}]}}}}]}}")
    given = config.load(RunConfig, [recipe])
    assert given.objective.auxiliary[0].bands == AiaTargets((AiaBand(1, 0.1, 0.3),), (AiaBand(1, 0.1, 0.3),))
    recipe.write_text(config.dump(given))
    assert config.load(RunConfig, [recipe]) == given


def row_of(batch: Batch, row: int) -> Batch:
    parts = {name: None if part is None else part[row : row + 1] for name, part in vars(batch).items()}
    return Batch(**parts)


def step(
    model: UniJanusForConditionalGeneration, parts: list[JointBatch], objective: Objective
) -> tuple[dict[str, float], dict[str, Tensor]]:
    model.zero_grad()
    totals = count_totals(parts, Parallel(), model.spans)
    sums: dict[str, float] = {}
    for part in parts:
        losses = objective.losses(Microbatch(part, model(batch=part, interaction=True), tuple(Task), totals))
        loss, terms = losses.total, losses.terms
        loss.backward()
        for name, term in terms.items():
            sums[name] = sums.get(name, 0.0) + term.item()
    return sums, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_step_is_the_same_in_parts(
    make_model: Callable[..., UniJanusForConditionalGeneration], joint_batch: JointBatch
) -> None:
    """One of two prompts is dropped: each part's mean of its own samples would weigh the only drawn sample twice, or never."""
    model = make_model()
    whole, wanted = step(model, [joint_batch], DRAWN)
    parts, found = step(model, [tuple(row_of(batch, row) for batch in joint_batch) for row in range(2)], DRAWN)
    assert whole.keys() == {"mmu", "t2i", "aia_mmu", "aia_t2i"}
    assert parts == pytest.approx(whole, rel=1e-5)
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).abs().max()) <= 1e-5 * scale, name


def test_the_total_weighs_each_task(make_model: Callable[..., UniJanusForConditionalGeneration], joint_batch: JointBatch) -> None:
    """2 L_mmu + 3 L_t2i, and of one task without coefficient nothing is computed."""
    model = make_model()
    output, totals = model(batch=joint_batch, interaction=True), count_totals([joint_batch], Parallel(), model.spans)
    assert totals.samples.tolist() == [2, 1]
    losses = DRAWN.losses(Microbatch(joint_batch, output, tuple(Task), totals))
    loss, terms = losses.total, losses.terms
    assert loss.item() == pytest.approx(2 * terms["aia_mmu"].item() + 3 * terms["aia_t2i"].item())
    generation = replace(DRAWN, auxiliary=(replace(DRAWN.auxiliary[0], mmu_coeff=0.0),))
    terms = generation.losses(Microbatch(joint_batch, output, tuple(Task), totals)).terms
    assert "aia_mmu" not in terms
    assert terms["aia_t2i"].item() > 0


def test_it_teaches(make_model: Callable[..., UniJanusForConditionalGeneration], joint_batch: JointBatch) -> None:
    """With nothing but this loss the intensities come to their targets."""
    model = make_model()
    optimizer = torch.optim.Adam([p for name, p in model.named_parameters() if "self_attn" in name], lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        output = model(batch=joint_batch, interaction=True)
        loss = DRAWN.losses(
            Microbatch(joint_batch, output, tuple(Task), count_totals([joint_batch], Parallel(), model.spans))
        ).total
        loss.backward()
        optimizer.step()
    for one in output.interaction:
        torch.testing.assert_close(one.intensity, torch.tensor([[0.4], [0.2]]).expand_as(one.intensity), atol=0.05, rtol=0)
