"""The grid: which runs there are, what they share, and which are one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from own_data import asked, flat, write_jsonl, write_pictures
from unidecouple import config
from unidecouple.batch import Task
from unidecouple.compare.budget import cells, check
from unidecouple.compare.plan import Comparison, Rate, Scenario, Variant, jobs
from unidecouple.data.settings import Files, Source
from unidecouple.methods.stage import Lora, Stage
from unidecouple.methods.structure import TaskAwareMoE

RECIPES = Path(__file__).parents[2] / "recipes"

FULL = (Stage(learning_rate=1e-3, train={"vision": 0.5, "ffn": 1}),)
GRID = Comparison(
    name="grid",
    scenarios={
        "S1-r0": Scenario("no replay", "understanding", 32, 0),
        "S1-r4": Scenario("replay", "understanding", 32, 8),
    },
    variants={
        "dense_t2i": Variant("generation only", stages=FULL, tasks="t2i"),
        "dense_mmu": Variant("understanding only", stages=FULL, tasks="mmu"),
        "dense_joint": Variant("both", stages=FULL),
        "unidecouple": Variant("ours", TaskAwareMoE(), FULL, scenarios=("S1-r4",)),
    },
    seeds=(0, 1),
)


def test_every_cell_once() -> None:
    cells = [(job.scenario, job.variant, job.seed) for job in jobs(GRID)]
    assert len(cells) == len(set(cells))
    assert cells[:2] == [("S1-r0", "start", 0), ("S1-r4", "start", 0)]
    assert ("S1-r0", "unidecouple", 0) not in cells
    assert ("S1-r0", "dense_mmu", 0) not in cells, "there is nothing to train on"


def test_equal_configurations_are_one_run() -> None:
    by_cell = {(job.scenario, job.variant, job.seed): job.folder for job in jobs(GRID)}
    assert by_cell["S1-r0", "dense_joint", 1] == by_cell["S1-r0", "dense_t2i", 1]
    assert by_cell["S1-r4", "dense_t2i", 0] == by_cell["S1-r0", "dense_t2i", 0]
    assert by_cell["S1-r4", "dense_joint", 0] != by_cell["S1-r4", "dense_t2i", 0]


def test_steps_and_data_are_matched() -> None:
    trained = [job for job in jobs(GRID) if job.variant != "start"]
    assert {job.config.max_steps for job in trained} == {GRID.run.max_steps}
    assert {job.config.data.t2i_batch_size for job in trained if job.variant != "dense_mmu"} == {32}


def test_rates_scale_every_stage_and_understanding_apart() -> None:
    grid = replace(GRID, rates={"": Rate(), "low": Rate(0.3, 0.1)})
    job = next(job for job in jobs(grid) if job.variant == "dense_joint@low")
    assert job.config.stages[0].learning_rate == pytest.approx(3e-4)
    assert job.config.stages[0].train == {"vision": pytest.approx(0.05), "ffn": 1.0}


def test_a_scenario_may_have_steps_of_its_own_and_a_variant_s_go_first() -> None:
    short = replace(GRID.scenarios["S1-r4"], max_steps=5, data={"single_object_steps": 2})
    variants = {"dense_joint": Variant("both"), "long": Variant("longer", max_steps=7)}
    grid = replace(GRID, scenarios=GRID.scenarios | {"S1-r4": short}, variants=variants)
    steps = {(job.scenario, job.name): (job.config.max_steps, job.config.data.single_object_steps) for job in jobs(grid)}
    assert (steps["S1-r4", "dense_joint"], steps["S1-r0", "dense_joint"]) == ((5, 2), (400, 0))
    assert (steps["S1-r4", "long"], steps["S1-r0", "long"]) == ((7, 2), (7, 0))


def test_unknown_scenario_is_named() -> None:
    bad = replace(GRID, variants={"x": Variant("x", scenarios=("S9",))})
    with pytest.raises(ValueError, match=r"variant 'x' names scenario 'S9'"):
        jobs(bad)


@pytest.mark.parametrize(
    ("control", "said"), [("dense_jiont", r"did you mean 'dense_joint'\?"), ("zzz", "this grid has 'dense_t2i', 'dense_mmu'")]
)
def test_a_control_that_is_no_variant_is_refused(control: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"control='{control}' is no variant.*{said}"):
        jobs(replace(GRID, control=control))


def test_control_and_focus_of_a_grid_that_names_none() -> None:
    """The first dense variant of both tasks, whatever its name and place; without one the first of both tasks."""
    assert (GRID.control_name, GRID.focus_name) == ("dense_joint", "unidecouple")
    lora = Variant("adapters", stages=(Stage(lora=Lora(4, 8.0)),))
    variants = {"adapters": lora, "plain": Variant("both", stages=FULL), "alone": Variant("t2i", stages=FULL, tasks="t2i")}
    grid = replace(GRID, variants=variants)
    assert (grid.control_name, grid.focus_name) == ("plain", "adapters")
    assert (grid.single_task(Task.T2I), grid.single_task(Task.MMU)) == ("alone", "")
    only = replace(GRID, variants={"adapters": lora})
    assert (only.control_name, only.focus_name) == ("adapters", "")
    assert jobs(only)


def test_metrics_and_focus_must_exist() -> None:
    assert jobs(replace(GRID, metrics=("pope", "geneval/counting"), focus="unidecouple"))
    with pytest.raises(ValueError, match=r"'pop' names no metric: benchmarks are pope, vqa"):
        jobs(replace(GRID, metrics=("pop",)))
    with pytest.raises(ValueError, match=r"focus='unidecuple' is no variant.*did you mean 'unidecouple'"):
        jobs(replace(GRID, focus="unidecuple"))


def test_batch_sizes_that_a_scenario_leaves_out_are_the_run_s() -> None:
    grid = replace(GRID, scenarios={"S1-r4": Scenario("as the run", "understanding", mmu_batch_size=4)})
    assert {job.config.data.t2i_batch_size for job in jobs(grid) if job.name == "dense_joint"} == {GRID.run.data.t2i_batch_size}
    assert {job.config.data.mmu_batch_size for job in jobs(grid) if job.name == "dense_joint"} == {4}


@pytest.mark.parametrize(("name", "value"), [("seeds", ()), ("scenarios", {}), ("variants", {}), ("rates", {}), ("seeds", (0, -1))])
def test_an_empty_or_impossible_part_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} is empty|seeds.1=-1 must be at least 0"):
        replace(GRID, **{name: value})


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (lambda: Scenario("a", "unified", -1, 0), "t2i_batch_size=-1"),
        (lambda: Scenario("a", "unified", 1, 1, max_steps=-2), "max_steps=-2"),
        (lambda: Rate(-1.0), "factor=-1"),
        (
            lambda: jobs(replace(GRID, variants={"a": Variant("a", data={"router_aux_samples": -1})}, control="")),
            "data of variant 'a': router_aux_samples=-1",
        ),
    ],
)
def test_numbers_of_a_grid_have_bounds(part: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        part()


def test_two_variants_of_one_title_are_refused() -> None:
    one = Variant("a", title="The same")
    with pytest.raises(ValueError, match="'first' and 'second' have one title, 'The same'"):
        replace(GRID, variants={"first": one, "second": replace(one, description="b")})


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem == "field" else [])
        for path in sorted((RECIPES / "compare").glob("*.yaml"))
    ],
)
def test_recipes_of_comparisons_see_equal_budgets(recipe: Path, tmp_path: Path) -> None:
    """And every variant but the controls has its place on an axis."""
    grid = config.load(Comparison, [recipe])
    if isinstance(grid.run.data, Files):
        write_pictures(tmp_path, "a.png")
        here = (Source(write_jsonl(tmp_path / "own.jsonl", [asked(), flat()])),)
        grid = replace(grid, run=replace(grid.run, data=replace(grid.run.data, sources=here, validation=here)))
    own = replace(grid.scenarios["own"], model_name_or_path="unified") if "own" in grid.scenarios else None
    planned = jobs(replace(grid, scenarios={"own": own}) if own else grid)
    first = next(iter(grid.scenarios))  # the others differ in sizes alone
    check(grid, cells([job for job in planned if job.seed == 0 and not job.rate and job.scenario == first]))
    controls = ("dense_joint", *(name for name, variant in grid.variants.items() if variant.tasks != "both"))
    assert all(variant.axis or name in controls for name, variant in grid.variants.items())
