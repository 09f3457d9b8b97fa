"""Costs against the model itself: its parameters, and FLOPs as torch counts them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from unidecouple.batch import Task
from unidecouple.compare.budget import PAPER
from unidecouple.compare.cost import VariantCost, cost
from unidecouple.convert.load import load
from unidecouple.methods.stage import Stage
from unidecouple.methods.structure import UPCYCLED, Dense, MoE, Structure, TaskAwareMoE, Upcycled
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.plan.stages import plan
from unidecouple.run import RunConfig
from unidecouple.train.build import restructure
from unidecouple.world.settings import SyntheticData

ALL = {"vision": 1.0, "embeddings": 1.0, "text_head": 1.0, "norms": 1.0, "attention": 1.0, "generation": 1.0}


def cost_of(structure: Structure, base: str = "understanding", mmu: int = 2, t2i: int = 4) -> VariantCost:
    mixture = structure.configure(UniLlamaConfig()).get("ffn", "dense") != "dense"
    ffn = {"experts": 1.0, "expert_router": 1.0} if mixture else {"ffn": 1.0}
    stages = (Stage("one", 1.0, train=ALL | ffn), Stage("two", 3.0, train={"generation": 1.0}))
    data = SyntheticData(mmu_batch_size=mmu, t2i_batch_size=t2i)
    return cost(plan(RunConfig(base, structure, data, stages=stages), PAPER))


@pytest.mark.slow
@pytest.mark.parametrize("kind", UPCYCLED)
def test_parameters_are_the_model_s(kind: type[Upcycled], small_base: Path) -> None:
    found = cost_of(kind(), str(small_base))
    model = restructure(load(str(small_base))[0], kind(), 0)
    assert found.parameters == sum(weight.numel() for weight in model.parameters())
    drawing = sum(weight.numel() for name, weight in model.named_parameters() if "generation_" in name)
    assert [name for name, _ in found.trainable] == ["one", "two"]
    assert found.trainable[1][1] == drawing
    assert max(found.active.values()) < found.parameters


def test_each_task_meets_its_own_head_and_one_expert(small_base: Path) -> None:
    model, _ = load(str(small_base))
    sizes = {name: weight.numel() for name, weight in model.named_parameters() if "vqmodel" not in name}
    found = cost_of(Dense(), str(small_base))

    def size(part: str) -> int:
        return sum(count for name, count in sizes.items() if part in name)

    seeing = size("vision_model") + size("aligner") - size("generation_aligner")
    assert found.active["mmu"] == sum(sizes.values()) - size("generation_head")
    assert found.active["t2i"] == sum(sizes.values()) - seeing - size("lm_head")
    experts = cost_of(replace(MoE(), shared_expert=False), str(small_base))
    routers = sum(
        w.numel() for n, w in restructure(model, MoE(shared_expert=False), 0).named_parameters() if n.endswith("mlp.gate.weight")
    )
    assert experts.active["t2i"] == found.active["t2i"] + routers


def test_a_mean_over_stages_by_their_share() -> None:
    """Stage two, of three times the length, trains less; a single long stage of either is the bound on either side."""
    both = cost_of(TaskAwareMoE())
    (one, two) = (
        cost(
            plan(
                RunConfig("understanding", TaskAwareMoE(), SyntheticData(mmu_batch_size=2, t2i_batch_size=4), stages=(stage,)),
                PAPER,
            )
        )
        for stage in (Stage(train=ALL | {"experts": 1.0, "expert_router": 1.0}), Stage(train={"generation": 1.0}))
    )
    assert both.train_flops == pytest.approx(0.25 * one.train_flops + 0.75 * two.train_flops)


def test_drawing_costs_the_forward_pass_of_its_weights() -> None:
    """About twice the active parameters a position (arXiv 2001.08361, section 2.1), prompt included; embeddings are looked up."""
    found = cost_of(Dense())
    assert found.generated_flops is not None
    assert 2 < found.generated_flops / found.active["t2i"] < 5
    assert found.train_flops > 2 * found.active["t2i"]


def test_a_task_without_samples_has_no_costs() -> None:
    found = cost_of(Dense(), t2i=0)
    assert set(found.active) == {Task.MMU.key}
    assert found.generated_flops is None
