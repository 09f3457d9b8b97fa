"""Equal budgets: hand-counted samples, and grids that are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from unidecouple.compare.budget import Budget, VariantPlan, budget, cells, check
from unidecouple.compare.plan import Comparison, Job, Rate, Scenario, Variant, jobs
from unidecouple.methods.stage import Stage
from unidecouple.methods.structure import TaskAwareMoE
from unidecouple.run import RunConfig
from unidecouple.world.settings import CurriculumPhase, SyntheticData

FULL = (Stage(train={"attention": 1}),)
GRID = Comparison(
    "grid",
    {"S1-r4": Scenario("replay", "understanding", 32, 8), "S1-r0": Scenario("no replay", "understanding", 32, 0)},
    {
        "dense_joint": Variant("both", stages=FULL),
        "dense_mmu": Variant("understanding only", stages=FULL, tasks="mmu"),
        "dense_t2i": Variant("generation only", stages=FULL, tasks="t2i"),
        "unidecouple": Variant("ours", structure=TaskAwareMoE(), stages=FULL, data={"router_aux_samples": 6}, rates=("",)),
    },
    rates={"": Rate(), "lr=0.3": Rate(0.3)},
    run=RunConfig(max_steps=100),
)


@pytest.fixture(scope="module")
def planned() -> dict[str, dict[str, VariantPlan]]:
    return cells(jobs(GRID))


@pytest.fixture(scope="module")
def budgets(planned: dict[str, dict[str, VariantPlan]]) -> dict[str, Budget]:
    return {name: cell.budget for name, cell in planned["S1-r4"].items()}


def test_samples_are_steps_times_batch_sizes(budgets: dict[str, Budget], planned: dict[str, dict[str, VariantPlan]]) -> None:
    assert budgets["dense_joint"].samples == {"mmu": 800, "t2i": 3200}
    assert budgets["dense_joint"].steps == {"mmu": 100, "t2i": 100}
    assert budgets["dense_mmu"].samples == {"mmu": 800, "t2i": 0}
    assert budgets["dense_mmu"].steps == {"mmu": 100, "t2i": 0}
    assert budgets["dense_t2i"].samples == {"mmu": 0, "t2i": 3200}
    assert "dense_mmu" not in planned["S1-r0"]
    check(GRID, planned)


def test_router_samples_are_pictures_shown_and_no_samples(budgets: dict[str, Budget]) -> None:
    assert budgets["unidecouple"].samples == budgets["dense_joint"].samples
    assert (budgets["unidecouple"].router_pictures, budgets["dense_joint"].router_pictures) == (600, 0)


def test_tokens_are_samples_times_their_length(budgets: dict[str, Budget]) -> None:
    """The shipped base draws an image in 16 tokens and sees one in as many, besides words."""
    tokens = budgets["dense_joint"].tokens
    assert 3200 * 16 < tokens["t2i"] < 3200 * 48
    assert tokens["t2i"] % 3200 == tokens["mmu"] % 800 == 0
    assert budgets["dense_t2i"].tokens == {"mmu": 0, "t2i": tokens["t2i"]}


def test_lessons_have_batches_of_their_own(planned: dict[str, dict[str, VariantPlan]]) -> None:
    # 10 steps of 64 and 20 of 16 in place of 8, and 70 of 8
    data = SyntheticData(
        mmu_batch_size=8, t2i_batch_size=32, curriculum=(CurriculumPhase("pointing", 10), CurriculumPhase("asking", 20, 16))
    )
    stages = planned["S1-r4"]["dense_joint"].stages
    assert budget(RunConfig(max_steps=100, data=data), stages).samples == {"mmu": 640 + 320 + 560, "t2i": 3200}
    assert budget(RunConfig(max_steps=15, data=data), stages).samples["mmu"] == 640 + 5 * 16


PARTED = (Stage(share=0.9, train={"attention": 1}, tasks="t2i"), Stage(share=0.1, train={"attention": 1}, tasks="mmu"))


def test_stages_count_for_the_tasks_that_they_train(budgets: dict[str, Budget]) -> None:
    """90 steps of 32 pairs, then 10 of 8 conversations with 6 router pairs."""
    grid = replace(GRID, variants=GRID.variants | {"parted": Variant("a", stages=PARTED, data={"router_aux_samples": 6})})
    found = cells([job for job in jobs(grid) if job.name in ("dense_joint", "parted") and job.scenario == "S1-r4"])
    seen, joint = found["S1-r4"]["parted"].budget, budgets["dense_joint"]
    assert (seen.steps, seen.samples) == ({"mmu": 10, "t2i": 90}, {"mmu": 80, "t2i": 2880})
    assert seen.tokens == {task: joint.tokens[task] * seen.samples[task] // joint.samples[task] for task in ("mmu", "t2i")}
    assert seen.router_pictures == 60
    with pytest.raises(ValueError, match=r"'parted' sees 80 mmu samples in 10 steps, 'dense_joint' 800 in 100(?s:.*)2,880 t2i"):
        check(grid, found)


def test_lessons_count_where_their_stage_trains_understanding(planned: dict[str, dict[str, VariantPlan]]) -> None:
    """Of lessons in steps 0 to 9 and 10 to 94 the last stage, steps 90 to 99, has five: 5 x 16 + 5 x 8."""
    data = SyntheticData(
        mmu_batch_size=8, t2i_batch_size=32, curriculum=(CurriculumPhase("pointing", 10), CurriculumPhase("asking", 85, 16))
    )
    stages = planned["S1-r4"]["dense_joint"].stages
    assert budget(RunConfig(max_steps=100, data=data, stages=PARTED), stages).samples == {"mmu": 5 * 16 + 5 * 8, "t2i": 2880}


def test_rates_tried_are_counted(planned: dict[str, dict[str, VariantPlan]]) -> None:
    found = planned["S1-r4"]
    assert (found["dense_joint"].rates, found["unidecouple"].rates) == (("", "lr=0.3"), ("",))


def test_a_point_that_changes_nothing_is_not_tried() -> None:
    """The stage trains attention alone, which the factor on understanding weights leaves as it is."""
    grid = replace(GRID, variants={"dense_joint": Variant("a", stages=FULL)}, rates=GRID.rates | {"und=0.1": Rate(1.0, 0.1)})
    assert cells(jobs(grid))["S1-r4"]["dense_joint"].rates == ("", "lr=0.3")


def test_a_variant_that_cannot_be_is_named() -> None:
    with pytest.raises(ValueError, match=r"variant 'typo' in S1-r4: train: 'atention' matches no weight"):
        cells(jobs(replace(GRID, variants={"typo": Variant("a", stages=(Stage(train={"atention": 1}),))})))


def cell(name: str, steps: int, mmu: int = 8, t2i: int = 32) -> VariantPlan:
    """As planned of a run of that many steps."""
    job = Job("S1-r4", name, "", 0, GRID.run, Path())
    sizes = {"mmu": mmu, "t2i": t2i}
    samples = {task: steps * size for task, size in sizes.items()}
    return VariantPlan(job, Budget({task: steps if size else 0 for task, size in sizes.items()}, samples, samples, 0), (), ("",))


class TestUnequal:
    LONG = Variant("longer", stages=FULL, max_steps=150)

    def test_is_refused_with_every_number(self) -> None:
        grid = replace(GRID, variants=GRID.variants | {"long": self.LONG})
        message = r"(?s)in S1-r4, 'long' sees 1,200 mmu samples in 150 steps, 'dense_joint' 800 in 100.*4,800 t2i.*other_budget"
        with pytest.raises(ValueError, match=message):
            check(grid, {"S1-r4": {"dense_joint": cell("dense_joint", 100), "long": cell("long", 150)}})

    def test_fewer_samples_in_equal_steps_are_refused_too(self) -> None:
        with pytest.raises(ValueError, match=r"'dense_t2i' sees 1,600 t2i samples in 100 steps"):
            check(GRID, {"S1-r4": {"dense_joint": cell("dense_joint", 100), "dense_t2i": cell("dense_t2i", 100, 0, 16)}})

    def test_passes_with_a_reason(self) -> None:
        reasoned = replace(self.LONG, other_budget="two models are merged")
        grid = replace(GRID, variants=GRID.variants | {"long": reasoned})
        check(grid, {"S1-r4": {"dense_joint": cell("dense_joint", 100), "long": cell("long", 150)}})

    def test_holds_single_tasks_to_their_own_task(self) -> None:
        grid = replace(GRID, variants=GRID.variants | {"long": replace(self.LONG, tasks="mmu")})
        check(grid, {"S1-r4": {"dense_joint": cell("dense_joint", 100), "long": cell("long", 100, t2i=0)}})
        with pytest.raises(ValueError, match=r"1,200 mmu") as raised:
            check(grid, {"S1-r4": {"dense_joint": cell("dense_joint", 100), "long": cell("long", 150, t2i=0)}})
        assert "t2i" not in str(raised.value)

    def test_without_the_control_the_first_variant_is_the_measure(self) -> None:
        grid = replace(GRID, control="another", variants={"moe": Variant("a", stages=FULL), "long": self.LONG})
        with pytest.raises(ValueError, match=r"'moe' 800 in 100"):
            check(grid, {"S1-r4": {"moe": cell("moe", 100), "long": cell("long", 150)}})
