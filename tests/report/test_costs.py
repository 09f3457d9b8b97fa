"""Costs, budgets and gaps in words."""

from __future__ import annotations

from typing import Any

import pytest

from comparison_field import budget, costs
from unidecouple.report.costs import budget_sentences, cost_cells, has_costs, missing_sentence
from unidecouple.report.results import Results, load_results


@pytest.fixture
def results(experiment: Any) -> Results:
    """Generation data only: dense_t2i is the control, UniDecouple shows images to its router and was run at one rate."""
    ours = budget(0, 32, 6) | {"rates": [""]}
    experiment.meta |= {
        "budgets": {"S1-r0": {"dense_t2i": budget(0, 32), "unidecouple": ours, "long": budget(0, 64)}},
        "other_budgets": {"long": "it is two models."},
        "tasks": {"dense_t2i": "t2i"},
        "costs": {"S1-r0": {"unidecouple": costs(3)}},
    }
    for run in experiment.runs:
        run |= {"cpu_seconds": 60.0 * run["seed"], "peak_memory_bytes": 1_000_000_000 + run["seed"]}
    return load_results(experiment.write())


def test_cells_of_a_variant(results: Results) -> None:
    parameters, flops, spent = cost_cells(results, "S1-r0", "unidecouple@lr=0.3")
    assert (parameters.value, parameters.notes) == ("4.54 M", ("active 1.41 M / 1.10 M", "trains 1.90 M then 870 k"))
    assert (flops.value, flops.notes) == ("6.40 M", ("drawing 3.50 M",))
    assert (spent.value, spent.notes) == ("", ())
    assert cost_cells(results, "S1-r0", "unidecouple")[2].value == "1 min 0 s", "the mean of 0, 1 and 2 minutes"
    assert cost_cells(results, "S1-r0", "unidecouple")[2].notes == ("peak 1.00 GB",)


def test_what_has_no_costs_has_no_cells(results: Results) -> None:
    assert cost_cells(results, "S1-r0", "start") == ()
    assert (has_costs(results, "S1-r0"), has_costs(results, "S2")) == (True, False)


def test_budgets_in_words(results: Results) -> None:
    assert budget_sentences(results, "S1-r0") == [
        "Equal budgets: 400 steps with 12,800 generation samples (about 768 k tokens).",
        "UniDecouple sees 2,400 further images for its task router.",
        "Long sees another budget (400 steps with 25,600 generation samples (about 1.54 M tokens)): it is two models.",
        "Tuned at 3 learning rates, but for UniDecouple (1).",
    ]
    assert budget_sentences(results, "S2") == []


def test_tasks_of_other_stages_have_steps_of_their_own(experiment: Any) -> None:
    parted = budget(2, 32) | {"steps": {"mmu": 40, "t2i": 360}}
    experiment.meta["budgets"] = {"S1-r0": {"dense_t2i": parted}}
    assert budget_sentences(load_results(experiment.write()), "S1-r0") == [
        "Equal budgets: 800 understanding samples (about 48.0 k tokens) in 40 steps and 12,800 generation samples "
        "(about 768 k tokens) in 360 steps."
    ]


def test_missing_runs_are_counted_and_named(experiment: Any) -> None:
    assert missing_sentence(load_results(experiment.write())) == ""
    experiment.meta["missing"] = [{"scenario": "S2", "variant": "moe@lr=0.3", "seed": seed} for seed in (3, 4)]
    assert missing_sentence(load_results(experiment.write())) == (
        "Partial results: 2 of 8 runs are not finished: plain MoE, rate \u00d7 0.3 in S2 (seed 3, 4). The same command runs them."
    )
    experiment.meta["missing"][1]["error"] = "the loss is not finite"
    assert missing_sentence(load_results(experiment.write())).endswith(
        "runs them. Of them 1 ended with an error; plain MoE, rate \u00d7 0.3 in S2 (seed 4) said: the loss is not finite"
    )
    experiment.meta["missing"] = [{"scenario": "S2", "variant": f"v{i}", "seed": i % 2} for i in range(15)]
    sentence = missing_sentence(load_results(experiment.write()))
    assert "15 of 21 runs are not finished: 8 runs of seed 0 in S2 and 7 runs of seed 1 in S2. The" in sentence
