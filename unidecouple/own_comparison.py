"""A comparison of methods on a user's model and files: a grid made from the registry of methods, on equal budgets.

Precedence, the later wins: the family's ``data.yaml`` and ``methods.yaml``; options, and what follows from the data and the
machine; ``key=value``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from unidecouple import config as configs
from unidecouple.batch import Task
from unidecouple.compare.grid import Comparison, Variant
from unidecouple.compare.methods import Family, family_of, family_recipe, find_method
from unidecouple.compare.plan import jobs
from unidecouple.config.layers import Layers
from unidecouple.eval.suite import BenchmarkOptions, open_benchmarks
from unidecouple.finetune import (
    FineTune,
    correct_memory_line,
    count_records,
    data_values,
    fit_memory,
    fit_steps,
    short_warmup,
    with_max_steps,
)
from unidecouple.source import PrintLine
from unidecouple.train.launch import device_of

SCENARIO: Final = "own"
SEEDS: Final = (0, 1, 2)
"""Three: with one there is no interval, and with two no significance."""
SAMPLES: Final = 6
"""Held-out prompts, and as many questions, that the page shows."""


@dataclass(frozen=True)
class OwnComparison:
    """What a comparison is asked for.

    Attributes:
        asked: model, data and what is held out; its method is not read.
        methods: names of ``recipes/<family>/methods.yaml``. Others are compared with "dense" if it is among them, else with the
            first that trains both tasks.
        benchmarks: name -> folder of a published benchmark's files.
        name: of the comparison.
        workers: runs at a time; None for one per core, or one where there is a GPU.
    """

    asked: FineTune
    methods: tuple[str, ...]
    benchmarks: Mapping[str, Path] = field(default_factory=dict)
    name: str = "own"
    workers: int | None = None


def default_workers(device: str = "auto") -> int:
    """Runs at a time: one on a GPU, else one per core, of which each run takes one."""
    return 1 if device_of(device).type == "cuda" else os.cpu_count() or 1


def configure_comparison(own: OwnComparison, overrides: Sequence[str], cache: Path, say: PrintLine) -> Comparison:
    """Return the grid that ``own`` describes; ``say`` gets what was decided and why.

    Raises:
        ValueError: the model, a method, a benchmark or data are unknown, or a method trains a task that the data lack.
        ConfigError: an override does not fit.
    """
    asked = own.asked
    for name, folder in own.benchmarks.items():  # else it were found out when the first run is trained
        open_benchmarks([name], BenchmarkOptions(data=folder))
    family = family_of(asked.model)
    counts = count_records(asked, cache)
    variants = _variants(own.methods, family, counts, say)
    shared = Layers()
    shared.add_file(family_recipe(family, "data"))
    given = {
        "name": own.name,
        "scenarios": {SCENARIO: {"description": _description(asked), "model_name_or_path": asked.model}},
        "variants": _plain(variants),
        "seeds": list(SEEDS),
        "run": {
            "model_name_or_path": asked.model,
            "data": data_values(asked, counts),
            **({} if asked.epochs is None else {"num_train_epochs": asked.epochs}),
            "evaluation": {"benchmarks": {name: str(path) for name, path in own.benchmarks.items()}, "num_samples": SAMPLES},
        },
    }
    values: list[tuple[str, Mapping[str, Any]]] = [("the recipe", {"run": shared.values}), ("the options", given)]
    draft = configs.load(Comparison, [], overrides, values)
    fitted, _ = fit_steps(asked, draft.run, counts)
    counted = fitted["max_steps"]
    draft = configs.load(Comparison, [], overrides, [*values, ("the data", {"run": fitted})])
    steps = with_max_steps(draft.run, counted).max_steps
    fitted, lines = fit_steps(asked, draft.run, counts, steps)
    short = {name: replace(one, stages=_short(one, steps)) for name, one in variants.items()}
    values.append(("the data", {"run": fitted, "variants": _plain(short)}))
    draft = configs.load(Comparison, [], overrides, values)
    draft = replace(draft, run=with_max_steps(draft.run, counted))
    trained = {job.folder: job for job in jobs(draft) if job.config.max_steps}.values()
    runs = [job.config for job in trained if not job.parents]
    at_a_time = min(own.workers or default_workers(draft.run.device), len(runs))
    fit = fit_memory(runs, lines, at_a_time)
    grid = configs.load(Comparison, [], overrides, [*values, ("this machine", {"run": fit})])
    grid = replace(grid, run=with_max_steps(grid.run, counted))
    chosen = {key: getattr(grid.run, key) for key in fit}
    correct_memory_line([replace(run, **chosen) for run in runs], fit, lines, at_a_time)
    lines.append(f"{len(runs)} runs of {grid.run.max_steps} steps: {', '.join(grid.variants)} with seeds {_listed(grid.seeds)}")
    if later := len(trained) - len(runs):
        lines.append(f"{later} more runs start from models of these; their memory is not planned here")
    for line in lines:
        say(line)
    return grid


def _variants(names: Sequence[str], family: Family, counts: Mapping[Task, int], say: PrintLine) -> dict[str, Variant]:
    """The methods called ``names``, in their order, each after the methods whose models it needs."""
    found: dict[str, Variant] = {}
    own = [find_method(family, asked)[0] for asked in names]

    def add(name: str) -> None:
        variant = find_method(family, name)[1]
        parents = tuple(dict.fromkeys(variant.parents))
        added = [parent for parent in parents if parent not in (*found, *own)]
        if added:
            does = "merges" if variant.merge else "starts from"
            say(f"method {name!r} {does} {' and '.join(parents)}: added {' and '.join(added)}")
        for parent in parents:
            add(parent)
        found.setdefault(name, variant)

    for name in own:
        add(name)
    for name, variant in found.items():
        if variant.tasks != "both" and not counts[Task[variant.tasks.upper()]]:
            raise ValueError(f"method {name!r} trains {variant.tasks} alone, and the data have none of it: leave it out")
    if len(found) < 2:
        raise ValueError(f"a comparison needs two methods, but --methods names {', '.join(found) or 'none'}: add dense, say")
    return found


def _plain(variants: Mapping[str, Variant]) -> dict[str, Any]:
    return {name: configs.plain(variant) for name, variant in variants.items()}


def _short(variant: Variant, steps: int) -> Any:
    return variant.stages if variant.merge else short_warmup(variant.stages, variant.max_steps or steps)


def _description(asked: FineTune) -> str:
    return f"{asked.model}, fine-tuned on {', '.join(path.name for path in asked.data)}."


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
