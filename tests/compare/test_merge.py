"""Variants that merge others: which runs they are made of, what they cost, refusals, and a small grid run to its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from small_runs import TWO_STEPS
from unidecouple import config
from unidecouple.api import delta, training
from unidecouple.cli import main
from unidecouple.compare.budget import VariantPlan, cells, check
from unidecouple.compare.cost import cost, cost_of
from unidecouple.compare.merge import Decoupling, Merge, MergeRecord, StartRecord, commands, words
from unidecouple.compare.only import chosen, parse
from unidecouple.compare.plan import Comparison, Rate, Scenario, Variant, ancestors, jobs
from unidecouple.compare.processes import Processes
from unidecouple.compare.runner import CompareOptions, run_comparison
from unidecouple.convert.load import checkpoint_folder
from unidecouple.delta.forms import Fidelity
from unidecouple.methods.merging import ESM, MERGINGS, AdaMerging, Concrete, Merging, TaskArithmetic, Ties
from unidecouple.methods.stage import Lora, Stage
from unidecouple.methods.structure import TaskAwareMoE
from unidecouple.run import RunConfig

FULL = (Stage(train={"attention": 1, "ffn": 1}),)
JOINT = (Stage("on", train={"attention": 1, "ffn": 1, "deltas": 1}),)
OF = ("mmu", "t2i")
LEARNS = AdaMerging(steps=10, batch_size=3)
FULL_SETS, RESIDUAL = Decoupling(full=True), Decoupling(rank=2, distill_steps=5)
ONE_CELL: dict[str, Any] = {"scenarios": ("S1-r4",), "rates": ("low",)}
GRID = Comparison(
    "grid",
    {"S1-r4": Scenario("replay", "understanding", 32, 8), "S1-r0": Scenario("no replay", "understanding", 32, 0)},
    {
        "added": Variant("merged, named before what it merges", merge=Merge(OF)),
        "dense_joint": Variant("both", stages=FULL),
        "mmu": Variant("understanding only", stages=FULL, tasks="mmu", rates=("", "low")),
        "t2i": Variant("generation only", stages=FULL, tasks="t2i", rates=("low", "high")),
        "learned": Variant("merged", merge=Merge(OF, LEARNS), other_budget="it looks at samples without labels"),
        "decoupled": Variant("of one", merge=Merge(("t2i",), RESIDUAL), other_budget="one task", **ONE_CELL),
        "both": Variant("of two", merge=Merge(("dense_joint", "dense_joint"), Decoupling(bits=True)), **ONE_CELL),
        "tuned": Variant("on", stages=JOINT, start_from="decoupled", max_steps=10, other_budget="goes on", **ONE_CELL),
    },
    seeds=(0, 1),
    rates={"": Rate(), "low": Rate(0.3), "high": Rate(3.0)},
    run=RunConfig(max_steps=100),
)


def test_what_is_merged_are_the_runs_of_the_same_cell() -> None:
    """At the rate that all parents are run at, and where each of them has data."""
    planned = jobs(GRID)
    found = {job.seed: job.parents for job in planned if job.name == "added"}
    assert found == {seed: tuple(Path("S1-r4", f"{name}@low", f"seed{seed}") for name in OF) for seed in (0, 1)}
    assert {(job.scenario, job.rate) for job in planned if job.merge} == {("S1-r4", "low")}
    assert all(job.config.max_steps == 0 and not job.config.stages for job in planned if job.merge)
    assert len({job.folder for job in planned if job.merge}) == 8
    for number, job in enumerate(planned):
        assert set(job.parents) <= {one.folder for one in planned[:number]}


def test_a_run_starts_from_the_same_cell() -> None:
    """Its record names the folder and the scenario's base, so that a comparison may be moved; its steps are its own."""
    planned = jobs(GRID)
    tuned = {job.seed: job for job in planned if job.name == "tuned"}
    assert {seed: job.parents for seed, job in tuned.items()} == {n: (Path(f"S1-r4/decoupled@low/seed{n}"),) for n in (0, 1)}
    record = tuned[0].record
    assert isinstance(record, StartRecord)
    assert (record.of, record.run.model_name_or_path, record.run.max_steps) == ("S1-r4/decoupled@low/seed0", "understanding", 10)
    assert ancestors(tuned[0], planned) == {Path("S1-r4/decoupled@low/seed0"), Path("S1-r4/t2i@low/seed0")}
    assert ancestors(tuned[0], planned, done=[Path("S1-r4/decoupled@low/seed0")]) == set()


def test_a_part_of_the_grid_has_what_it_merges() -> None:
    planned = jobs(GRID)
    found = chosen(parse(["variant=added,seed=1"], planned), planned)
    assert [(job.variant, job.seed) for job in found] == [("start", 0), ("mmu@low", 1), ("t2i@low", 1), ("added@low", 1)]
    found = chosen(parse(["variant=tuned,seed=1"], planned), planned)
    assert [job.variant for job in found] == ["start", "t2i@low", "decoupled@low", "tuned@low"]


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        (Variant("x", merge=Merge(("mmu", "dense_t2i"))), "variant 'x' names variant 'dense_t2i'; this grid has 'added'"),
        (Variant("x", merge=Merge(("mmu",))), "merges mmu: name at least two"),
        (Variant("x", merge=Merge(("mmu", "added"))), "'x' merges 'added', which does not end as the base's own weights"),
        (Variant("x", merge=Merge(("mmu", "moe"))), "'x' merges 'moe', which"),
        (Variant("x", merge=Merge(("mmu", "low_rank"))), "'x' merges 'low_rank', which"),
        (Variant("x", stages=FULL, merge=Merge(OF)), "'x' is merged and trains nothing: leave out"),
        (Variant("x", tasks="t2i", merge=Merge(OF)), "'x' is merged and trains nothing: leave out"),
        (
            Variant("x", merge=Merge(("t2i", "mmu", "t2i"), FULL_SETS)),
            "'x' decouples t2i, mmu, t2i: name the variant",
        ),
        (Variant("x", merge=Merge(("mmu",), FULL_SETS)), "'x' decouples mmu, and mmu trains mmu alone: the first one generates"),
        (Variant("x", merge=Merge(("t2i", "t2i"), FULL_SETS)), "and t2i trains t2i alone"),
        (Variant("x", merge=Merge(("moe",), FULL_SETS)), "'x' merges 'moe', which"),
        (Variant("x", merge=Merge(("t2i",), Decoupling(rank=2, onto=Ties()))), "'x' decouples t2i onto a merge, which needs two"),
        (Variant("x", start_from="t2", stages=FULL), "variant 'x' names variant 't2'; this grid has 'added'"),
        (Variant("x", start_from="tuned", stages=FULL), "'x' starts from 'tuned', which starts from another variant itself"),
        (Variant("x", start_from="x", stages=FULL), "'x' starts from 'x', which starts from another variant itself"),
        (Variant("x", start_from="t2i", merge=Merge(OF)), "'x' is merged and trains nothing: leave out .* and start_from"),
        (Variant("x", merge=Merge(("tuned",), FULL_SETS)), "'x' merges 'tuned', which does not end as the base's own weights"),
    ],
)
def test_what_cannot_be_merged(variant: Variant, said: str) -> None:
    others = {"moe": Variant("m", TaskAwareMoE(), FULL), "low_rank": Variant("l", stages=(replace(FULL[0], lora=Lora()),))}
    with pytest.raises(ValueError, match=said):
        jobs(replace(GRID, variants=GRID.variants | others | {"x": variant}))


@pytest.fixture(scope="module")
def planned() -> dict[str, VariantPlan]:
    return cells([job for job in jobs(GRID) if job.seed == 0 and job.scenario == "S1-r4"])["S1-r4"]


def test_a_merge_has_seen_what_its_parents_have(planned: dict[str, VariantPlan]) -> None:
    assert planned["added"].budget == planned["dense_joint"].budget
    learned = planned["learned"].budget
    assert (learned.samples, learned.steps) == ({"mmu": 830, "t2i": 3230}, {"mmu": 110, "t2i": 110})
    per_sample = planned["t2i"].budget.tokens["t2i"] // 3200
    assert learned.tokens["t2i"] == 3230 * per_sample
    check(GRID, {"S1-r4": planned})
    silent = replace(GRID, variants=GRID.variants | {"learned": replace(GRID.variants["learned"], other_budget="")})
    with pytest.raises(ValueError, match=r"'learned' sees 830 mmu samples in 110 steps, 'dense_joint' 800 in 100"):
        check(silent, {"S1-r4": planned})


def test_a_merge_costs_what_its_parents_do(planned: dict[str, VariantPlan]) -> None:
    mmu, t2i, found = (cost_of(planned[name]) for name in ("mmu", "t2i", "added"))
    assert found.active == mmu.active | t2i.active
    assert found.trainable == [("mmu: joint", mmu.trainable[0][1]), ("t2i: joint", t2i.trainable[0][1])]
    tokens = [sum(planned[name].budget.tokens.values()) for name in OF]
    expected = (mmu.train_flops * tokens[0] + t2i.train_flops * tokens[1]) / sum(tokens)
    assert found.train_flops == pytest.approx(expected)
    assert (found.parameters, found.generated_flops) == (t2i.parameters, t2i.generated_flops)


def test_a_decoupled_model_has_seen_what_its_parent_has(planned: dict[str, VariantPlan]) -> None:
    """A parent that serves both tasks is counted once; distillation's prompts are."""
    assert planned["both"].budget == planned["dense_joint"].budget
    found = planned["decoupled"].budget
    assert (found.samples, found.steps) == ({"mmu": 0, "t2i": 3240}, {"mmu": 0, "t2i": 105})


def test_a_run_has_seen_what_its_start_has(planned: dict[str, VariantPlan]) -> None:
    before, found = planned["decoupled"].budget, planned["tuned"].budget
    assert (found.samples, found.steps) == ({"mmu": 80, "t2i": 3560}, {"mmu": 10, "t2i": 115})
    assert found.tokens["t2i"] * before.samples["t2i"] == before.tokens["t2i"] * found.samples["t2i"]
    silent = replace(GRID, variants=GRID.variants | {"tuned": replace(GRID.variants["tuned"], other_budget="")})
    with pytest.raises(ValueError, match=r"'tuned' sees 80 mmu samples in 10 steps, 'dense_joint' 800 in 100"):
        check(silent, {"S1-r4": planned})


def test_a_run_costs_its_start_besides(planned: dict[str, VariantPlan]) -> None:
    """The model is as large as the decoupled one; both tasks train on it, and its residuals with it."""
    parent, before, found = (cost_of(planned[name]) for name in ("t2i", "decoupled", "tuned"))
    joint = cost_of(planned["dense_joint"])
    norms = before.parameters - parent.parameters - (before.active["t2i"] - parent.active["t2i"])
    assert (found.parameters, found.generated_flops) == (before.parameters, before.generated_flops)
    assert found.active == {"mmu": joint.active["mmu"], "t2i": before.active["t2i"]}
    residuals = before.parameters - parent.parameters - norms
    assert found.trainable == [*before.trainable, ("on", joint.trainable[0][1] + residuals + norms)]
    tokens = {name: sum(planned[name].budget.tokens.values()) for name in ("decoupled", "tuned")}
    own = cost(planned["tuned"].stages).train_flops
    whole = own * (tokens["tuned"] - tokens["decoupled"]) + before.train_flops * tokens["decoupled"]
    assert found.train_flops == pytest.approx(whole / tokens["tuned"])
    assert own > joint.train_flops


def test_a_decoupled_model_costs_its_deltas_besides(planned: dict[str, VariantPlan]) -> None:
    """By hand, of the shipped base's decoder: what is stored for a task, and what a token of it meets."""
    with (checkpoint_folder("understanding") / "config.json").open() as opened:
        text = json.load(opened)["text_config"]
    width, inner, layers = text["hidden_size"], text["intermediate_size"], text["num_hidden_layers"]
    heads, kv = text["num_attention_heads"], text["num_key_value_heads"]
    across = width // heads * kv
    shapes = [(width, width)] * 2 + [(across, width)] * 2 + [(inner, width)] * 2 + [(width, inner)]
    norms = width * (2 * layers + 1)
    parent, found = cost_of(planned["t2i"]), cost_of(planned["decoupled"])
    low_rank = layers * sum(2 * (a + b) for a, b in shapes)
    assert found.parameters - parent.parameters == low_rank + norms
    assert found.active["t2i"] - parent.active["t2i"] == low_rank
    assert parent.generated_flops is not None
    assert found.generated_flops is not None
    drawn = 1 - parent.generated_flops / found.generated_flops
    assert 0 < drawn < 0.2
    joint, both = cost_of(planned["dense_joint"]), cost_of(planned["both"])
    signs = layers * sum(a * b // 8 + 1 for a, b in shapes)
    assert both.parameters - joint.parameters == 2 * (signs + norms)
    assert both.active["mmu"] - joint.active["mmu"] == layers * sum(a * b + 1 for a, b in shapes)


@pytest.mark.parametrize(
    "method",
    [member() for member in MERGINGS]
    + [
        TaskArithmetic(scale=0.7),
        AdaMerging("adamerging", 0.2, 0.03, 7, 5),
        Ties(density=0.4, scale=None),
        ESM(samples=8, scale=1.5),
    ]
    + [Concrete("concrete", 0.2, 0.01, 0.5, 0.7, 9, 3, 4)],
    ids=repr,
)
def test_words_mean_their_method(method: Merging, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(training, "merge_checkpoints", lambda base, tuned, target, method, *rest: asked.append(method))
    assert main(["merge", "base", "one", "two", "--output", "out", *words(method)]) == 0
    assert asked == [method]


@pytest.mark.parametrize(
    ("method", "models", "expected"),
    [
        (Decoupling(rank=8), ["t2i"], {"fidelity": Fidelity(rank=8)}),
        (Decoupling(energy=0.5, budget=4096), ["t2i"], {"fidelity": Fidelity(energy=0.5, budget=4096)}),
        (FULL_SETS, ["t2i", "mmu"], {"fidelity": Fidelity(full=True), "understanding": "mmu"}),
        (Decoupling(bits=True), ["t2i"], {"mode": "bits", "fidelity": Fidelity(bits=True)}),
        (Decoupling(bits=True, budget=4096), ["t2i"], {"mode": "bits", "fidelity": Fidelity(bits=True, budget=4096)}),
    ],
    ids=lambda value: repr(value) if isinstance(value, Decoupling) else None,
)
def test_words_mean_their_decoupling(
    method: Decoupling, models: list[str], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(delta, "write_decoupled", lambda *given: asked.append(given))
    (line,) = commands(method, "base", models, Path("out"), ["--cache", "kept", "--recipe", "demo"])
    assert main(line) == 0
    ((base, tuned, target, options, _),) = asked
    assert (base, tuned, target, options.cache) == ("base", "t2i", Path("out"), Path("kept"))
    assert {name: getattr(options, name) for name in expected} == expected


def test_esm_plus_plus_merges_first() -> None:
    method = Decoupling(rank=8, onto=ESM())
    first, second = commands(method, "base", ["t2i", "mmu"], Path("run/merged"), ["--recipe", "r"])
    assert first[:4] == ["merge", "base", "t2i", "mmu"]
    assert first[first.index("--output") + 1] == second[1] == str(Path("run/merged-first"))
    assert second[:5] == ["decouple", second[1], "t2i", "--understanding", "mmu"]
    assert second[second.index("--output") + 1] == str(Path("run/merged"))


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    return load_file(checkpoint_folder(str(folder)) / "model.safetensors")


@pytest.mark.slow
def test_a_merge_runs_to_its_end(small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With what it needs; then again after a kill between merging and scoring."""
    learned = Variant("l", merge=Merge(OF, AdaMerging(start=0.4, steps=2, batch_size=2)), other_budget="it looks again")
    variants = {name: Variant(name, stages=FULL, tasks=name) for name in OF} | {"dense_joint": Variant("d"), "learned": learned}
    grid = Comparison("grid", {"S1": Scenario("replay", str(small_base), 2, 2)}, variants, run=TWO_STEPS)
    folder = tmp_path / "grid"
    order = CompareOptions(folder, tmp_path / "cache", 2, ("variant=learned",))
    content = json.loads(run_comparison(grid, order).read_text())
    assert {row["variant"] for row in content["rows"]} == {"start", "mmu", "t2i", "learned"}
    start, mmu, t2i = weights(small_base), weights(folder / "S1/mmu/seed0"), weights(folder / "S1/t2i/seed0")
    mine = folder / "S1/learned/seed0"
    for name, weight in weights(mine / "merged").items():
        expected = start[name] + 0.4 * (mmu[name] - start[name]) + 0.4 * (t2i[name] - start[name])
        torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-4)
    assert "entropy" in (mine / "log.txt").read_text()
    seen = {run["variant"]: run for run in content["meta"]["runs"]}
    assert seen["learned"]["mmu_samples"] == seen["mmu"]["mmu_samples"] + 4
    each = seen["t2i"]["t2i_tokens"] // seen["t2i"]["t2i_samples"]
    assert seen["learned"]["t2i_tokens"] == seen["t2i"]["t2i_tokens"] + 4 * each, "the merge's own are in it"
    took, scored = (json.loads((mine / name).read_text())["cpu_seconds"] for name in ("merged/spent.json", "scores.json"))
    assert took > 0
    parents = seen["mmu"]["cpu_seconds"] + seen["t2i"]["cpu_seconds"]
    assert seen["learned"]["cpu_seconds"] == pytest.approx(parents + took + scored)

    scored, written = json.loads((mine / "scores.json").read_text())["scores"], (mine / "merged").stat().st_mtime_ns
    (mine / "scores.json").unlink()
    capsys.readouterr()
    run_comparison(grid, order)
    assert "4 runs, 3 of them done before" in capsys.readouterr().out
    assert (json.loads((mine / "scores.json").read_text())["scores"], (mine / "merged").stat().st_mtime_ns) == (scored, written)

    saved = config.load(MergeRecord, [mine / "merge.yaml"])
    assert (saved.of, saved.method) == (("S1/mmu/seed0", "S1/t2i/seed0"), AdaMerging(start=0.4, steps=2, batch_size=2))
    changed = replace(learned, merge=Merge(OF, AdaMerging(start=0.4, steps=3, batch_size=2)))
    with pytest.raises(ValueError, match=r"learned/seed0/merge.yaml has method\.steps: 2, not 3"):
        run_comparison(replace(grid, variants=variants | {"learned": changed}), order)


@pytest.mark.slow
def test_a_grid_decouples_its_runs(small_base: Path, small_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: understanding scores as the start's, and generation has the parent's weights."""

    def in_process(self: Processes, words: Sequence[str], line: Callable[[str], None]) -> int:
        return main(list(words))

    monkeypatch.setattr(Processes, "run", in_process)
    variants = {
        "t2i": Variant("t2i", stages=FULL, tasks="t2i"),
        "whole": Variant("w", merge=Merge(("t2i",), FULL_SETS)),
        "distilled": Variant("r", merge=Merge(("t2i",), Decoupling(rank=1, distill_steps=2)), other_budget="distilled"),
        "tuned": Variant("on", stages=JOINT, start_from="distilled", max_steps=1, other_budget="goes on"),
    }
    grid = Comparison("grid", {"S1": Scenario("generation alone", str(small_base), 2, 0)}, variants, run=TWO_STEPS)
    folder = tmp_path / "grid"
    content = json.loads(run_comparison(grid, CompareOptions(folder, small_cache, 1)).read_text())
    understood = {}
    for row in content["rows"]:
        if row["benchmark"] in ("pope", "vqa"):
            understood.setdefault(row["variant"], {})[row["benchmark"], row["metric"]] = row["value"]
    assert understood["whole"] == understood["distilled"] == understood["start"]
    start, t2i, whole = weights(small_base), weights(folder / "S1/t2i/seed0"), weights(folder / "S1/whole/seed0/merged")
    name = "model.language_model.layers.0.mlp.up_proj"
    assert torch.equal(whole[f"{name}.weight"], start[f"{name}.weight"])
    assert torch.equal(whole[f"{name}.deltas.t2i.weight"], t2i[f"{name}.weight"])
    assert not torch.equal(t2i[f"{name}.weight"], start[f"{name}.weight"])
    about = json.loads((folder / "S1/distilled/seed0/merged/decouple.json").read_text())["settings"]
    assert about["task_deltas"]["t2i"]["layers.0.mlp.up_proj"] == "rank:1"
    assert about["distillation"]["steps"] == 2
    seen = {run["variant"]: run for run in content["meta"]["runs"]}
    assert seen["distilled"]["t2i_samples"] == seen["whole"]["t2i_samples"] + 16
    assert seen["tuned"]["t2i_samples"] == seen["distilled"]["t2i_samples"] + 2
    assert seen["tuned"]["t2i_steps"] == seen["distilled"]["t2i_steps"] + 1
    assert seen["tuned"]["cpu_seconds"] > seen["distilled"]["cpu_seconds"]
    before, after = weights(folder / "S1/distilled/seed0/merged"), weights(folder / "S1/tuned/seed0")
    assert before.keys() == after.keys()
    for weight in (f"{name}.weight", f"{name}.deltas.t2i.up", f"{name}.deltas.t2i.down"):
        assert not torch.equal(before[weight], after[weight])
    norms = [weight for weight in before if weight.endswith("norm.weight")]
    assert norms
    assert all(torch.equal(before[weight], after[weight]) for weight in norms)
    assert config.load(StartRecord, [folder / "S1/tuned/seed0/start.yaml"]).of == "S1/distilled/seed0"
    scores = json.loads((folder / "S1/tuned/seed0/scores.json").read_text())
    other = replace(grid, variants=variants | {"tuned": replace(variants["tuned"], max_steps=2)})
    with pytest.raises(ValueError, match=r"tuned/seed0/start.yaml has run\.max_steps: 1, not 2"):
        run_comparison(other, CompareOptions(folder, small_cache, 1))
    assert json.loads((folder / "S1/tuned/seed0/scores.json").read_text()) == scores
    spent = json.loads((folder / "S1/whole/seed0/merged/spent.json").read_text())
    assert seen["whole"]["cpu_seconds"] > seen["t2i"]["cpu_seconds"] + spent["cpu_seconds"] > 0
