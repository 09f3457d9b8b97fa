"""What is refused in a grid before anything runs."""

from __future__ import annotations

import difflib
from dataclasses import replace

from unidecouple import config as configs
from unidecouple.batch import Task
from unidecouple.compare.claim import Claim
from unidecouple.compare.grid import START, Comparison, Variant
from unidecouple.compare.merge import Decoupling, Merge
from unidecouple.eval.suite import metric_named


def check_grid(grid: Comparison) -> None:
    """Refuse a grid whose parts do not fit together.

    Raises:
        ValueError: a name is unknown, a merge is impossible, or a setting means nothing on the grid's data.
    """
    for key, name in (("control", grid.control), ("focus", grid.focus)):
        if name and name not in grid.variants:
            near = difflib.get_close_matches(name, grid.variants, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"this grid has {', '.join(map(repr, grid.variants))}"
            raise ValueError(f"{key}={name!r} is no variant of this grid ({hint})")
    for name in grid.metrics:
        metric_named(name)
    grid.run.data.check_comparable()
    if grid.run.early_stopping_patience is not None or grid.run.load_best_model_at_end:
        raise ValueError(
            "run has early stopping or load_best_model_at_end, but compared variants must see equal budgets: leave them out"
        )
    for what, ones in (("scenario", grid.scenarios), ("variant", grid.variants)):
        for name, one in ones.items():
            if one.data:  # refuses unknown keys and values out of range
                configs.restore(type(grid.run.data), {**configs.plain(grid.run.data), **one.data}, f"data of {what} {name!r}")
    for name, variant in grid.variants.items():
        _check_names(grid, name, variant)
    for claim in grid.claims:
        _check_claim(grid, claim)


def _check_names(grid: Comparison, name: str, variant: Variant) -> None:
    for kind, wanted, known in (
        ("scenario", variant.scenarios, grid.scenarios),
        ("rate", variant.rates, grid.rates),
        ("variant", variant.parents, grid.variants),
    ):
        for entry in wanted:
            if entry not in known:
                raise ValueError(f"variant {name!r} names {kind} {entry!r}; this grid has {', '.join(map(repr, known))}")
    if variant.merge is not None:
        _check_merge(grid, name, variant, variant.merge)
    elif variant.start_from and grid.variants[variant.start_from].start_from:
        raise ValueError(
            f"variant {name!r} starts from {variant.start_from!r}, which starts from another variant itself: name one that is "
            "trained from the base, or merged"
        )


def _check_claim(grid: Comparison, claim: Claim) -> None:
    for scenario in claim.scenarios or grid.scenarios:
        if scenario not in grid.scenarios:
            known = ", ".join(map(repr, grid.scenarios))
            raise ValueError(f"claim {claim.says!r} names scenario {scenario!r}; this grid has {known}")
        for one in filter(None, (claim.of, claim.against)):
            name, _, rate = one.partition("@")
            if one != START and (name not in grid.variants or rate not in grid.points(scenario, name)):
                raise ValueError(
                    f"claim {claim.says!r} names {one!r}, which is not run in {scenario}: name a variant of the grid, and a rate "
                    "that it has"
                )


def _check_merge(grid: Comparison, name: str, variant: Variant, merge: Merge) -> None:
    bare = Variant("", other_budget=variant.other_budget, scenarios=variant.scenarios, rates=variant.rates, axis=variant.axis)
    if replace(variant, description="", title="", merge=None) != bare:
        raise ValueError(
            f"variant {name!r} is merged and trains nothing: leave out structure, stages, objective, tasks, steps and start_from"
        )
    if isinstance(merge.method, Decoupling):
        _check_decoupled(grid, name, merge)
    elif len(merge.of) < 2:
        raise ValueError(f"variant {name!r} merges {', '.join(merge.of) or 'nothing'}: name at least two variants")
    for parent in merge.of:
        theirs = grid.variants[parent]
        if theirs.merge or not theirs.is_dense:
            raise ValueError(
                f"variant {name!r} merges {parent!r}, which does not end as the base's own weights, only changed: merge dense "
                "variants without low-rank updates"
            )


def _check_decoupled(grid: Comparison, name: str, merge: Merge) -> None:
    if len(merge.of) not in (1, 2):
        raise ValueError(
            f"variant {name!r} decouples {', '.join(merge.of) or 'nothing'}: name the variant that generates, and at most one "
            "more, which understands"
        )
    if isinstance(merge.method, Decoupling) and merge.method.onto is not None and len(merge.of) < 2:
        raise ValueError(f"variant {name!r} decouples {merge.of[0]} onto a merge, which needs two variants: name both in `of`")
    for parent, lacking in zip(merge.of, (Task.MMU, Task.T2I), strict=False):
        if grid.variants[parent].tasks == lacking.key:
            raise ValueError(
                f"variant {name!r} decouples {', '.join(merge.of)}, and {parent} trains {lacking.key} alone: the first one "
                "generates, the second one understands"
            )
