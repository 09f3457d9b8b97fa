"""Verdicts on claims, by hand-made scores of three seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unidecouple.figures.wording import DASH, MINUS
from unidecouple.report.claims import AGAINST, HOLDS, MISSING, MIXED, NOT_SHOWN, OPEN, OPPOSITE, PARTLY, UNTESTED, verdicts
from unidecouple.report.markdown import claims_table
from unidecouple.report.page import CLAIMS, write_report
from unidecouple.report.results import load_results

BETTER = {"of": "ours", "against": "dense_joint", "higher": ["pope", "vqa"]}


def made(new: Any, *claims: dict[str, Any]) -> Any:
    experiment = new()
    experiment.meta["config"] = {"claims": [{"says": f"claim {n}", "source": "a paper"} | claim for n, claim in enumerate(claims)]}
    experiment.add("S2", "start", {"pope": (0.9,), "vqa": (0.8,)})
    experiment.add("S2", "dense_joint", {"pope": (0.60, 0.70, 0.80), "vqa": (0.50, 0.50, 0.50)})
    return experiment


@pytest.mark.parametrize(
    ("pope", "vqa", "verdict"),
    [
        ((0.61, 0.71, 0.81), (0.52, 0.53, 0.54), HOLDS),  # +1 each; +2, +3, +4: 3 ± 2.5
        ((0.61, 0.71, 0.81), (0.50, 0.53, 0.56), PARTLY),  # 0, +3, +6: 3 ± 7.5
        ((0.58, 0.70, 0.82), (0.47, 0.50, 0.53), NOT_SHOWN),
        ((0.59, 0.69, 0.79), (0.46, 0.50, 0.53), OPPOSITE),  # -1 each; -4, 0, +3: -.3 ± 8.7
        ((0.59, 0.69, 0.79), (0.48, 0.50, 0.53), AGAINST),  # its mean, +.3, speaks for it
        ((0.59, 0.69, 0.79), (0.52, 0.53, 0.54), MIXED),
    ],
)
def test_verdicts(new_experiment: Any, pope: Any, vqa: Any, verdict: str) -> None:
    experiment = made(new_experiment, BETTER)
    experiment.add("S2", "ours", {"pope": pope, "vqa": vqa})
    (one,) = verdicts(load_results(experiment.write()))
    assert (one.verdict, one.seeds, one.compared) == (verdict, "3 seeds", f"ours {DASH} dense joint")


@pytest.mark.parametrize(
    ("vqa", "own", "settle"),
    [
        # +4.33, deviation 4.16: t(.975, 6) 4.16 / sqrt(7) = 3.85, t(.975, 5) 4.16 / sqrt(6) = 4.37
        ((0.51, 0.53, 0.59), {}, "about 7 seeds, if the difference in VQA stays."),
        ((0.49, 0.47, 0.41), {}, "about 7 seeds, if the difference in VQA stays."),
        ((0.49, 0.50, 0.51), {}, "more than 100 seeds, if the difference in POPE stays."),
        ((0.51, 0.53, 0.59), {"settle": "A GPU."}, "A GPU."),
        ((0.52, 0.53, 0.54), {}, ""),  # in part
    ],
)
def test_how_many_seeds_would_settle_it(new_experiment: Any, vqa: Any, own: dict[str, str], settle: str) -> None:
    experiment = made(new_experiment, BETTER | own)
    experiment.add("S2", "ours", {"pope": (0.58, 0.70, 0.82), "vqa": vqa})
    folder = experiment.write()
    (one,) = verdicts(load_results(folder))
    assert (one.verdict, one.settle) == (NOT_SHOWN if settle else PARTLY, settle)
    sentence = f"To settle it: {settle}"
    assert (sentence in claims_table([one])) == (sentence in write_report(folder).read_text()) == bool(settle)


def test_a_lower_score_can_be_what_is_claimed(new_experiment: Any) -> None:
    less = {"of": "ours", "lower": ["pope"]}
    experiment = made(new_experiment, less | {"against": "dense_joint"}, less)
    experiment.add("S2", "ours", {"pope": (0.59, 0.69, 0.79)})
    against, zero = verdicts(load_results(experiment.write()))
    assert (against.verdict, against.findings[0].text) == (HOLDS, f"POPE {MINUS}1.0 ± 0.0"), "no spread, no star"
    assert (zero.verdict, zero.compared) == (OPPOSITE, "ours")
    assert zero.findings[0].delta.mean == pytest.approx(0.69)


def test_the_base_is_one_for_all_seeds(new_experiment: Any) -> None:
    experiment = made(new_experiment, {"of": "dense_joint", "against": "start", "lower": ["vqa"]})
    (one,) = verdicts(load_results(experiment.write()))
    assert (one.verdict, one.seeds, one.findings[0].delta.mean) == (HOLDS, "3 seeds", pytest.approx(-0.3))


def test_a_step_and_other_measures(new_experiment: Any) -> None:
    claim = {"of": "ours", "against": "dense_joint", "higher": ["pope/val"], "step": 100}
    experiment = made(new_experiment, claim)
    for variant, gain in (("dense_joint", 0.0), ("ours", 0.1)):
        for seed in range(3):
            experiment.row("S2", variant, seed, "pope", "accuracy/val", 0.5 + gain + 0.01 * seed * gain, step=100)
            experiment.row("S2", variant, seed, "pope", "accuracy/val", 0.5 - gain, step=200)
    (one,) = verdicts(load_results(experiment.write()))
    assert (one.verdict, one.compared) == (HOLDS, f"ours {DASH} dense joint, at step 100")
    assert one.findings[0].text.startswith("POPE on validation samples +10.1")


def test_what_was_not_run_and_what_cannot_be(new_experiment: Any) -> None:
    experiment = made(new_experiment, BETTER, {"of": None, "settle": "A GPU."})
    experiment.add("S2", "ours", {"pope": (0.61, 0.71, 0.81)})  # no VQA
    missing, untested = verdicts(load_results(experiment.write()))
    assert (missing.verdict, len(missing.findings)) == (MISSING, 1)
    assert (untested.verdict, untested.scenario, untested.settle) == (UNTESTED, "", "A GPU.")


def test_the_correction_counts_all_claims_of_a_scenario(new_experiment: Any) -> None:
    """p of 3 ± 2.5 points is .036: it holds alone, and not among two."""
    alone = made(new_experiment, {"of": "ours", "against": "dense_joint", "higher": ["vqa"]})
    alone.add("S2", "ours", {"pope": (0.5, 0.7, 0.9), "vqa": (0.52, 0.53, 0.54)})
    (one,) = verdicts(load_results(alone.write()))
    assert one.findings[0].holds
    both = made(new_experiment, BETTER)
    both.add("S2", "ours", {"pope": (0.5, 0.7, 0.9), "vqa": (0.52, 0.53, 0.54)})
    (one,) = verdicts(load_results(both.write()))
    assert [finding.holds for finding in one.findings] == [False, False]
    assert one.verdict == PARTLY


@pytest.mark.parametrize(("seeds", "label"), [(1, "1 seed"), (2, "2 seeds")])
def test_fewer_than_three_seeds_leave_it_open(new_experiment: Any, seeds: int, label: str) -> None:
    """Two equal differences have an interval of no width, which says nothing."""
    experiment = made(new_experiment, BETTER)
    experiment.add("S2", "ours", {"pope": (0.7, 0.8)[:seeds], "vqa": (0.6, 0.6)[:seeds]})
    (one,) = verdicts(load_results(experiment.write()))
    assert (one.verdict, one.seeds) == (OPEN, label)
    assert not any(finding.holds for finding in one.findings)


def test_page_and_table_tell_the_same(new_experiment: Any) -> None:
    experiment = made(new_experiment, BETTER, {"of": None, "settle": "A GPU."})
    experiment.add("S2", "ours", {"pope": (0.61, 0.71, 0.81), "vqa": (0.525, 0.53, 0.536)})
    folder = experiment.write()
    page = write_report(folder).read_text()
    assert 'id="claims"' in page
    assert "VQA +3.0 ± 1.4 *" in page
    table = (folder / CLAIMS).read_text()
    assert table == "<!-- unidecouple -->\n" + claims_table(verdicts(load_results(folder)))
    assert f"| claim 0 | a paper | S2 | ours {DASH} dense joint: POPE +1.0 ± 0.0, VQA +3.0 ± 1.4 * | 3 | reproduced |" in table
    assert "| claim 1 | a paper |  | A GPU. |  | cannot be tested here |" in table


@pytest.mark.slow
def test_a_grid_without_claims_has_no_section(experiment: Any) -> None:
    folder = experiment.write()
    assert 'id="claims"' not in write_report(folder).read_text()
    assert not Path(folder / CLAIMS).exists()
