"""Differences corrected for all that a table holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unidecouple.eval.statistics import holm, paired_t, sign_flip
from unidecouple.eval.suite import metric_named
from unidecouple.figures.style import variant_styles
from unidecouple.report.results import Results, load_results
from unidecouple.report.significance import compared, found_sentence
from unidecouple.report.tables import headline

POPE, VQA, GENEVAL = map(metric_named, ("pope", "vqa", "geneval"))
SEEDS = 5


@pytest.fixture
def results(new_experiment: Any) -> Results:
    """One variant far ahead, one a little, 18 that are noise around the control."""
    rng, made = np.random.default_rng(0), new_experiment()

    def add(variant: str, shift: float) -> None:
        made.add("S2", variant, {name: tuple(0.5 + shift + rng.normal(0, 0.01, SEEDS)) for name in ("pope", "vqa", "geneval")})

    add("dense_joint", 0.0)
    add("far", 0.2)
    add("near", 0.02)
    for number in range(18):
        add(f"noise{number}", 0.0)
    return load_results(made.write())


def test_every_p_is_corrected_for_all_of_the_table(results: Results) -> None:
    found = compared(results, "S2", results.leading("S2"))
    assert len(found) == 20 * 3
    raw = [one.delta.p for one in found.values()]
    assert [one.corrected for one in found.values()] == holm(raw)
    control, far = (results.final("S2", name, POPE) for name in ("dense_joint", "far"))
    gaps = [far[seed] - control[seed] for seed in range(SEEDS)]
    one = found["far", POPE]
    assert (one.delta.p, one.delta.flipped) == (paired_t(gaps), sign_flip(gaps))
    assert one.holds
    assert one.tests.endswith("sign flips: p = 0.062, 5 seeds")


def test_noise_that_looks_like_a_finding_alone_is_none_after_the_correction(results: Results) -> None:
    found = compared(results, "S2", results.leading("S2"))
    alone = [key for key, one in found.items() if key[0].startswith("noise") and one.delta.is_shown]
    assert alone, "of 54 differences that are none, some intervals exclude zero"
    assert not any(found[key].holds for key in alone)


def test_the_table_marks_what_holds(results: Results) -> None:
    lines = {
        line.name: line for line in headline(results, "S2", variant_styles(results.names, results.title, role=results.role)).lines
    }
    assert [score.holds for score in lines["far"].scores] == [True] * 3
    assert {score.holds for score in lines["noise1"].scores} == {False}
    assert [score.tests for score in lines["dense joint"].scores] == [""] * 3


def test_the_finding_in_words(results: Results, experiment: Any) -> None:
    said = found_sentence(results, "S2")
    assert said.startswith("Against dense joint, corrected for 60 comparisons (Holm): ahead in POPE: far")
    assert "noise" not in said
    assert found_sentence(load_results(experiment.write()), "S1-r0") == "", "one variant needs no summary"


def test_one_seed_is_no_test(new_experiment: Any) -> None:
    made = new_experiment()
    for number, name in enumerate(("dense_joint", "a", "b", "c")):
        made.add("S2", name, {"pope": (0.5 + number / 10,), "vqa": (0.5,), "geneval": (0.5,)})
    results = load_results(made.write())
    one = compared(results, "S2", results.leading("S2"))["a", POPE]
    assert (one.delta.half_width, one.corrected, one.holds, one.tests) == (None, None, False, "one seed: no test")
    assert found_sentence(results, "S2") == ""
    assert (VQA in {m for _, m in compared(results, "S2", ["a"])}, GENEVAL.title) == (True, "GenEval")


@pytest.mark.parametrize(
    ("gains", "tests"),
    [
        ((1 / 60,) * 2, "paired t: no spread to judge by, 2 seeds"),
        ((1 / 60, 1 / 60 + 1e-4), "paired t: p = 0.002, after Holm p = 0.002, 2 seeds"),
        ((1 / 60,) * 3, "paired t: no spread to judge by, 3 seeds"),
        ((1 / 60,) * 5, "paired t: no spread to judge by, sign flips: p = 0.062, 5 seeds"),
    ],
)
def test_no_star_of_two_seeds_or_without_spread(new_experiment: Any, gains: tuple[float, ...], tests: str) -> None:
    made = new_experiment()
    made.add("S2", "dense_joint", {"pope": (0.6, 0.7, 0.8, 0.5, 0.4)[: len(gains)]})
    made.add("S2", "ours", {"pope": tuple(a + b for a, b in zip((0.6, 0.7, 0.8, 0.5, 0.4), gains, strict=False))})
    results = load_results(made.write())
    one = compared(results, "S2", ["ours"])["ours", POPE]
    assert (one.holds, one.tests) == (False, tests)
    line = next(
        line
        for line in headline(results, "S2", variant_styles(results.names, results.title, role=results.role)).lines
        if line.name == "ours"
    )
    assert [score.holds for score in line.scores if score] == [False]


def test_the_control_s_own_run_under_another_name_is_no_comparison(experiment: Any) -> None:
    """Without understanding data joint training is generation-only training: one run, two names, nothing to test."""
    experiment.add("S1-r0", "dense_joint", dict.fromkeys(("pope", "vqa", "geneval"), (0.5, 0.5, 0.5)))
    for run in experiment.runs:
        run["folder"] = run["folder"].replace("dense_joint", "dense_t2i")
    results = load_results(experiment.write())
    assert results.reference("S1-r0") == "dense_joint"
    assert {variant for variant, _ in compared(results, "S1-r0", results.leading("S1-r0"))} == {"unidecouple"}
