"""Fronts compare at equal generation, and say where there is nothing to compare with."""

from __future__ import annotations

import re
from typing import Any

import pytest

from unidecouple.eval.suite import metric_named
from unidecouple.figures.style import variant_styles
from unidecouple.report import log_figures
from unidecouple.report.figures_front import front
from unidecouple.report.fronts import front_gaps, front_names, front_sentences, height, leaders_sentence
from unidecouple.report.results import Results, load_results

POPE = metric_named("pope")


def fronts(made: Any) -> Results:
    """Dense joint: (.40, .90), (.60, .70); ours: (.50, .85), (.30, .90), (.70, .60), in both of two seeds."""
    for variant, generation, kept in (
        ("dense_joint@und=0.1", 0.40, 0.90),
        ("dense_joint", 0.60, 0.70),
        ("unidecouple@lr=0.1", 0.30, 0.90),
        ("unidecouple", 0.50, 0.85),
        ("unidecouple@lr=3", 0.70, 0.60),
    ):
        made.add("S2", variant, {"pope": (kept, kept), "geneval": (generation, generation)})
    made.add("S2", "moe", {"pope": (0.5, 0.5), "geneval": (0.5, 0.5)})
    return load_results(made.write())


def test_height_joins_undominated_points_only() -> None:
    points = [(0.6, 0.7), (0.4, 0.9), (0.45, 0.1), (0.3, 0.2)]
    assert height(points, 0.5) == pytest.approx(0.8)
    assert height(points, 0.1) == pytest.approx(0.9)
    assert height(points, 0.6) == pytest.approx(0.7)
    assert height(points, 0.61) is None


def test_gaps(new_experiment: Any) -> None:
    own, low, high = sorted(
        front_gaps(fronts(new_experiment()), "S2", "unidecouple", "dense_joint", POPE), key=lambda gap: gap.rate
    )
    assert (low.rate, low.gap.mean, low.beyond) == ("lr=0.1", pytest.approx(0.0), 0)
    assert (own.rate, own.gap.mean, own.gap.half_width) == ("", pytest.approx(0.05), pytest.approx(0.0, abs=1e-12))
    assert (high.rate, high.gap, high.beyond) == ("lr=3", None, 2)


def test_sentences(new_experiment: Any) -> None:
    said = front_sentences(fronts(new_experiment()), "S2")
    assert said == [
        "At equal GenEval, POPE of UniDecouple against the front of dense joint over learning rates: "
        "0.0 ± 0.0 at rate \u00d7 0.1 and +5.0 ± 0.0 at rate \u00d7 1 points.",
        "UniDecouple generated better than dense joint did at any rate at rate \u00d7 3 (2 seeds).",
    ]


def test_who_is_not_beaten_in_both(new_experiment: Any) -> None:
    """In the order of the grid, single tasks left out; fewer than four points are no choice."""
    made = new_experiment()
    made.add("S2", "dense_t2i", {"pope": (0.4, 0.6), "geneval": (0.9, 0.9)})
    made.add("S1-r1", "dense_joint", {"pope": (0.4, 0.6), "geneval": (0.9, 0.9)})
    results = fronts(made)
    assert leaders_sentence(results, "S2") == (
        "By the means alone, which seeds may not tell from the next best, none of 6 variants and rates is better in both POPE and "
        "GenEval than dense joint, understanding \u00d7 0.1 (90.0, 40.0), dense joint (70.0, 60.0), UniDecouple (85.0, 50.0) and "
        "UniDecouple, rate \u00d7 3 (60.0, 70.0)."
    )
    assert leaders_sentence(results, "S1-r1") == ""


def test_equal_scores_are_equal_over_any_number_of_seeds(new_experiment: Any) -> None:
    """The mean of three times .1 is not .1 in floats; who draws less at the same understanding is no leader."""
    made = new_experiment()
    for variant, drawn, seeds in (("moe", 0.1, 2), ("less", 0.2, 3), ("more", 0.5, 2), ("least", 0.05, 3)):
        made.add("S2", variant, {"pope": (0.1,) * seeds, "geneval": (drawn,) * seeds})
    assert leaders_sentence(load_results(made.write()), "S2").endswith("than more (10.0, 50.0).")


def test_a_figure_only_where_several_rates_were_tried(new_experiment: Any, experiment: Any) -> None:
    results = fronts(new_experiment())
    assert front_names(results, "S2") == ("dense_joint", "unidecouple")
    (drawn,) = (
        plot for _, plot in log_figures.fronts(results, "S2", variant_styles(results.names, results.title, role=results.role)).plots
    )
    assert "rate \u00d7 0.1" in drawn.svg
    assert "understanding \u00d7 0.1" in drawn.svg
    assert "plain MoE" in drawn.svg, "a variant of one rate is a point"
    single = load_results(experiment.write())
    assert log_figures.fronts(single, "S1-r0", variant_styles(single.names, single.title, role=single.role)).plots == ()
    assert front_sentences(single, "S1-r0") == []


@pytest.mark.parametrize(
    ("lost", "label"),
    [
        ((0.1, 0.6), "\u2193 60.0, 10.0"),
        ((0.88, 0.01), "\u2190 1.0, 88.0"),
        ((0.1, 0.01), "\u2199 1.0, 10.0"),
        ((0.86, 0.58), None),
    ],
)
def test_what_is_far_out_is_an_arrow_at_the_edge(new_experiment: Any, lost: tuple[float, float], label: str | None) -> None:
    """With its GenEval and understanding; it does not press the others together."""
    made = new_experiment()
    for place, variant in enumerate(("dense_joint", "moe", "near", "nearer")):
        made.add("S2", variant, {"pope": (0.90 - 0.01 * place,) * 2, "geneval": (0.60 + 0.01 * place,) * 2})
    made.add("S2", "lost", {"pope": (lost[0],) * 2, "geneval": (lost[1],) * 2})
    results = load_results(made.write())
    drawn = front(results, "S2", ("dense_joint", "lost"), variant_styles(results.names, results.title, role=results.role), "front")
    assert drawn is not None
    assert re.findall(r">([\u2190\u2193\u2199][^<]*)<", drawn.svg) == ([label] if label else [])
    assert not {"20", "40"} & set(re.findall(r">(\d+)<", drawn.svg))
