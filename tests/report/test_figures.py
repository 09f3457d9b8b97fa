"""Figures: one look a variant, means at shared steps, and what the diagnosis calls a difference."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from unidecouple.diagnose.gradient_conflict import Conflict, ConflictLog, color_limit, conflict_map, mean_conflicts
from unidecouple.diagnose.routing import RoutingLayer, draw_routing
from unidecouple.figures.style import INK, VariantStyle, canvas, to_svg, variant_styles
from unidecouple.report import log_figures
from unidecouple.report.figures import mean_curve, overview
from unidecouple.report.logs import curve, stage_starts
from unidecouple.report.results import load_results


def cell(cosine: float, floor: float, spread: float = 0.01, part: str = "down") -> Conflict:
    return Conflict(0, part, cosine, spread, floor, spread, 1.0)


def test_a_variant_with_a_role_looks_the_same_whatever_comes_with_it() -> None:
    roles = {"before": "start", "drawn": "t2i", "seen": "mmu", "dense": "control", "ours": "focus"}
    every = variant_styles([*roles, "without stage 1", "by label"], str, role=lambda name: roles.get(name, ""))
    assert {name: variant_styles([name], str, role=roles.__getitem__)[name] for name in roles} == {
        name: every[name] for name in roles
    }
    assert len({look.color for look in every.values()}) == len({look.marker for look in every.values()}) == 7


def test_every_figure_uses_the_variant_s_color(experiment: Any) -> None:
    results = load_results(experiment.write())
    look = variant_styles(results.names, results.title, role=results.role)
    parts = [log_figures.losses(results, "S1-r0", look), log_figures.scores(results, "S1-r0", look)]
    drawn = [overview(results, look), *(plot for part in parts for _, plot in part.plots)]
    assert len(drawn) == 3
    for variant in ("dense_t2i", "unidecouple"):
        assert [look[variant].color in plot.svg for plot in drawn] == [True] * 3
    assert all(plot.alt and plot.caption for plot in drawn)


def test_svg_is_themed_and_its_ids_are_its_own() -> None:
    def draw(name: str) -> str:
        figure, axes = canvas(2, 2)
        axes[0].plot([0, 1], [1, 0], "o", clip_on=True)
        return to_svg(figure, name)

    first, second = draw("a"), draw("b")
    assert first == draw("a")
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', first))
    assert used
    assert used <= ids[0]
    assert f"var(--ink, {INK})" in first
    assert "<style" not in first


def test_mean_curve_keeps_shared_steps() -> None:
    drawn = mean_curve([{0: 1.0, 10: 2.0, 20: 9.0}, {0: 3.0, 10: 2.0}])
    assert (drawn.steps, drawn.mean, drawn.low, drawn.high) == ([0, 10], [2.0, 2.0], [1.0, 2.0], [3.0, 2.0])


def test_curves_skip_records_without_the_value_and_find_stages() -> None:
    records = [{"step": 1, "stage": "a", "loss/t2i": 2}, {"step": 2, "stage": "b"}, {"step": 3, "stage": "b", "loss/t2i": None}]
    assert curve(records, "loss/t2i") == {1: 2.0}
    assert stage_starts(records) == [(2, "b")]


class TestConflict:
    def test_one_seed_needs_twice_the_joint_spread(self) -> None:
        # joint spread of .03 and .04 is .05, so the gap must pass .10
        ((_, near),) = mean_conflicts([ConflictLog(1, (Conflict(0, "up", 0.10, 0.03, 0.19, 0.04, 1.0),))])
        ((_, far),) = mean_conflicts([ConflictLog(1, (Conflict(0, "up", 0.10, 0.03, 0.21, 0.04, 1.0),))])
        assert (near, far) == (False, True)

    def test_several_seeds_use_their_interval(self) -> None:
        steady = mean_conflicts([ConflictLog(1, (cell(-0.1, 0.1, spread=9),)), ConflictLog(1, (cell(-0.1, 0.1001, spread=9),))])
        loose = mean_conflicts([ConflictLog(1, (cell(-0.1, 0.1),)), ConflictLog(1, (cell(0.1, 0.11),))])
        assert [differs for _, differs in steady + loose] == [True, False]
        assert loose[0][0].cosine == pytest.approx(0.0)

    def test_the_caption_counts_conflicts_below_the_floor_only(self) -> None:
        seeds = [ConflictLog(7, (cell(-0.2, 0.3), cell(0.9, 0.3, part="up"), cell(0.3, 0.3, part="gate")))]
        drawn = conflict_map("c", "dense", seeds, color_limit(seeds))
        assert "In 1 of 3 weight matrices" in drawn.caption
        assert "Mean cosine +0.333 between the tasks, +0.300 within one task" in drawn.caption
        assert color_limit(seeds) == pytest.approx(0.9)
        assert conflict_map("c", "dense", [ConflictLog(7, ())], 1.0) is None


def test_routing_says_how_many_tokens_go_to_their_own_group() -> None:
    groups = {"mmu": [0.9, 0.1], "t2i": [0.0, 1.0]}
    experts = {"mmu": [0.5, 0.4, 0.1, 0.0], "t2i": [0.0, 0.0, 0.5, 0.5]}
    layers = [RoutingLayer(0, 0.4, groups, experts), RoutingLayer(1, 0.6, groups | {"mmu": [0.7, 0.3]}, experts)]
    drawn = draw_routing("r", "ours", layers, VariantStyle("#000000", "o", "ours"))
    assert "80.0% of understanding tokens and 100.0% of generation tokens go to their own" in drawn.caption
    assert "is 0.50 on average" in drawn.caption
    plain = draw_routing(
        "r", "moe", [RoutingLayer(0, None, {"mmu": [1.0]}, {"mmu": [0.5, 0.5]})], VariantStyle("#000000", "o", "ours")
    )
    assert plain.caption == "One group only: the tasks share all experts."
    assert not np.any([word in plain.svg for word in ("Alpha", "Group (")])


def test_routing_parts_groups_where_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    edges: list[float] = []
    monkeypatch.setattr(Axes, "axvline", lambda self, x, **style: edges.append(x))
    shares = {"mmu": [0.5, 0.3, 0.2]}, {"mmu": [0.5, 0.2, 0.1, 0.1, 0.1]}
    for sizes in ((1, 3, 1), ()):
        draw_routing("r", "partitioned", [RoutingLayer(0, None, *shares, sizes=sizes)], VariantStyle("#000000", "o", "ours"))
    assert edges == [1, 4], "logs that do not say the sizes draw no edges"
