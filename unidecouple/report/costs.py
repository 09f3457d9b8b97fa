"""What variants cost and saw, in words: cells of the table, and sentences on budgets and on what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unidecouple.batch import TASK_KEYS
from unidecouple.figures.wording import TASK_NAMES, counted, duration, listed, scaled
from unidecouple.report.results import START, Results, split_rate

COST_COLUMNS = (
    ("Parameters", "active: understanding / generation"),
    ("FLOPs per token", "of a training step; of drawing"),
    ("A run", "CPU time; most memory"),
)
"""(heading, what stands in its cells)."""
MOST_NAMED = 12
"""Variants whose missing runs are named; of more, runs are counted."""


@dataclass(frozen=True)
class CostCell:
    """A number and what stands below it in small."""

    value: str
    notes: tuple[str, ...]


def has_costs(results: Results, scenario: str) -> bool:
    """Whether costs were computed; results of earlier versions have none."""
    return bool(results.meta.get("costs", {}).get(scenario))


def cost_cells(results: Results, scenario: str, variant: str) -> tuple[CostCell, ...]:
    """Cells of ``variant``, in the order of ``COST_COLUMNS``; none for the start and where nothing is known."""
    cost: Mapping[str, Any] | None = results.meta.get("costs", {}).get(scenario, {}).get(split_rate(variant)[0])
    if cost is None:
        return ()
    active = " / ".join(scaled(cost["active"][task]) for task in TASK_KEYS if task in cost["active"])
    trained = " then ".join(scaled(count) for _, count in cost["trainable"])
    drawn = cost["generated_flops"]
    return (
        CostCell(scaled(cost["parameters"]), (f"active {active}", f"trains {trained}")),
        CostCell(scaled(cost["train_flops"]), (f"drawing {scaled(drawn)}",) if drawn is not None else ()),
        _spent(results, scenario, variant),
    )


def _spent(results: Results, scenario: str, variant: str) -> CostCell:
    runs = [run for run in results.meta["runs"] if (run["scenario"], run["variant"]) == (scenario, variant)]
    seconds = [run["cpu_seconds"] for run in runs if run.get("cpu_seconds") is not None]
    peaks = [run["peak_memory_bytes"] for run in runs if run.get("peak_memory_bytes") is not None]
    spent = duration(sum(seconds) / len(seconds)) if seconds else ""
    return CostCell(spent, (f"peak {scaled(max(peaks))}B",) if peaks else ())


def budget_sentences(results: Results, scenario: str) -> list[str]:
    """What every variant of ``scenario`` saw, then who saw something else and why; nothing where no budget was recorded."""
    budgets: Mapping[str, Any] = results.meta.get("budgets", {}).get(scenario, {})
    if not budgets:
        return []
    control = split_rate(results.reference(scenario) or next(iter(budgets)))[0]
    common = budgets.get(control) or next(iter(budgets.values()))
    sentences = [f"Equal budgets: {_sees(common)}."]
    for name, budget in budgets.items():
        words = [f"{budget['router_pictures']:,} further images for its task router"] if budget["router_pictures"] else []
        task = results.meta.get("tasks", {}).get(name)
        words += [f"the {TASK_NAMES[task]} samples only, by design"] if task and _differs(budget, common) else []
        reason = results.meta.get("other_budgets", {}).get(name, "").rstrip(".")
        words += [f"another budget ({_sees(budget)}): {reason}"] if reason else []
        sentences += [f"{results.title(name)} sees {listed(words)}."] if words else []
    tried = {name: len(budget["rates"]) for name, budget in budgets.items()}
    if len(set(tried.values())) > 1:
        most = max(tried.values())
        fewer = listed([f"{results.title(name)} ({count})" for name, count in tried.items() if count < most])
        sentences.append(f"Tuned at {counted(most, 'learning rate')}, but for {fewer}.")
    return [sentence[0].upper() + sentence[1:] for sentence in sentences]


def _differs(budget: Mapping[str, Any], common: Mapping[str, Any]) -> bool:
    return any(budget["samples"][task] != common["samples"][task] for task in TASK_KEYS)


def _sees(budget: Mapping[str, Any]) -> str:
    seen = {
        task: f"{budget['samples'][task]:,} {TASK_NAMES[task]} samples (about {scaled(budget['tokens'][task]).strip()} tokens)"
        for task in TASK_KEYS
        if budget["samples"][task]
    }
    steps = budget["steps"]
    if len({steps[task] for task in seen}) > 1:  # some stages train one task alone
        return listed([f"{words} in {steps[task]:,} steps" for task, words in seen.items()])
    return f"{max(steps.values()):,} steps with {listed(list(seen.values()))}"


def missing_sentence(results: Results) -> str:
    """Which runs of the grid are not in the results, and the errors of those that failed; "" if all are there."""
    missing = results.meta.get("missing", [])
    seeds: dict[tuple[str, str], list[str]] = {}
    for run in missing:
        seeds.setdefault((run["scenario"], run["variant"]), []).append(str(run["seed"]))
    if not seeds:
        return ""
    named = [f"{results.title(variant)} in {scenario} (seed {', '.join(of)})" for (scenario, variant), of in seeds.items()]
    if len(named) > MOST_NAMED:
        counts = Counter((run["scenario"], run["seed"]) for run in missing)
        named = [f"{counted(count, 'run')} of seed {seed} in {scenario}" for (scenario, seed), count in sorted(counts.items())]
    training = sum(run["variant"] != START for run in missing)
    whole = training + results.num_runs
    what = f"{training} of {whole} runs are not finished" if training else "the start is not scored"
    sentence = f"Partial results: {what}: {listed(named)}. The same command runs them."
    failed = [run for run in missing if "error" in run]
    if failed:
        first = failed[0]
        where = f"{results.title(first['variant'])} in {first['scenario']} (seed {first['seed']})"
        sentence += f" Of them {len(failed)} ended with an error; {where} said: {first['error']}"
    return sentence
