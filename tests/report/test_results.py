"""Reading results, and the statistics of the page, against numbers worked out by hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from unidecouple.eval.suite import metric_named
from unidecouple.figures.estimates import SeedEstimate, difference, estimate
from unidecouple.report.results import load_results, split_rate

POPE, VQA, GENEVAL = map(metric_named, ("pope", "vqa", "geneval"))
UNIDECOUPLE = "unidecouple"


def test_change_is_taken_against_the_one_start(experiment: Any) -> None:
    results = load_results(experiment.write())
    change = results.change("S1-r0", "dense_t2i", POPE)
    # .60, .64, .62 less .94: mean -.32, deviation .02, half width .02 / sqrt(3) * 4.30265
    assert change.mean == pytest.approx(-0.32)
    assert change.half_width == pytest.approx(0.0496828, abs=1e-6)
    assert change.count == 3


def test_delta_is_paired_with_dense_t2i_where_there_is_no_understanding_data(experiment: Any) -> None:
    results = load_results(experiment.write())
    assert results.reference("S1-r0") == "dense_t2i"
    delta = results.delta("S1-r0", UNIDECOUPLE, POPE)
    # .33, .30, .33: mean .32, deviation sqrt(3) / 100, half width .01 * 4.30265
    # t = .32 / .01 = 32 with 2 degrees: p = 1 - t / sqrt(2 + t^2) = .00097513; three seeds are too few to flip signs
    assert delta == SeedEstimate(
        pytest.approx(0.32), pytest.approx(0.0430265, abs=1e-6), 3, pytest.approx(1 - 32 / 1026**0.5), None
    )
    assert results.delta("S1-r0", "dense_t2i", POPE) is None
    assert results.delta("S1-r0", "start", POPE) is None


def test_elsewhere_the_control_is_dense_joint_at_the_same_rate(new_experiment: Any) -> None:
    made = new_experiment()
    for variant in (
        "dense_t2i",
        "dense_joint",
        "dense_joint@lr=0.3",
        "unidecouple@lr=0.3",
        "unidecouple@lr=3",
        "unidecouple",
    ):
        made.add("S2", variant, {"pope": (0.5, 0.6)})
    results = load_results(made.write())
    assert results.reference("S2", "unidecouple@lr=0.3") == "dense_joint@lr=0.3"
    assert results.reference("S2", "unidecouple@lr=3") is None
    assert results.reference("S2") == "dense_joint"
    assert results.variants("S2")[:3] == ("dense_t2i", "dense_joint", "dense_joint@lr=0.3")
    assert results.variants("S2")[3:] == ("unidecouple@lr=0.3", "unidecouple@lr=3", "unidecouple")


def test_ours_come_last_and_other_names_keep_their_order(new_experiment: Any) -> None:
    made = new_experiment()
    for variant in ("unidecouple", "without stage 1", "moe", "by label", "start"):
        made.add("S2", variant, {"pope": (0.5,)})
    assert load_results(made.write()).variants("S2") == ("start", "without stage 1", "moe", "by label", "unidecouple")


def test_the_last_step_counts(experiment: Any) -> None:
    experiment.row("S1-r0", UNIDECOUPLE, 0, "vqa", "accuracy", 0.1, step=200)
    experiment.row("S1-r0", UNIDECOUPLE, 1, "vqa", "accuracy", 0.2, step=800)
    assert load_results(experiment.write()).final("S1-r0", UNIDECOUPLE, VQA) == {0: 0.80, 1: 0.2, 2: 0.81}


def test_scores_that_could_not_be_taken_are_left_out(experiment: Any) -> None:
    experiment.row("S1-r0", UNIDECOUPLE, 9, "geneval", "overall", None)
    assert set(load_results(experiment.write()).final("S1-r0", UNIDECOUPLE, GENEVAL)) == {0, 1, 2}


def test_one_seed_has_no_interval_and_shows_nothing() -> None:
    assert estimate([0.3]) == SeedEstimate(0.3, None, 1)
    assert not estimate([0.3]).is_shown


def test_difference_uses_the_seeds_that_both_have() -> None:
    assert difference({0: 0.5, 1: 0.7, 7: 9.0}, {1: 0.6, 0: 0.4}).mean == pytest.approx(0.1)
    assert difference({0: 0.5}, {0: 0.4}) == SeedEstimate(pytest.approx(0.1), None, 1)
    assert difference({0: 0.5}, {1: 0.4}) is None


def test_rates() -> None:
    assert split_rate("dense_joint@lr=0.3") == ("dense_joint", "lr=0.3")
    assert split_rate("moe") == ("moe", "")


class TestBadFiles:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"results\.json does not exist; give the folder"):
            load_results(tmp_path)

    def test_compressed_ones_are_read_as_plain_ones(self, experiment: Any) -> None:
        folder = experiment.write()
        plain = load_results(folder)
        packed = gzip.compress((folder / "results.json").read_bytes())
        (folder / "results.json").unlink()
        (folder / "results.json.gz").write_bytes(packed)
        assert load_results(folder).rows == plain.rows
        (folder / "results.json.gz").write_bytes(packed[:100])
        with pytest.raises(OSError, match=r"results\.json\.gz is damaged"):
            load_results(folder)

    def test_broken(self, tmp_path: Path) -> None:
        (tmp_path / "results.json").write_text('{"meta": ')
        with pytest.raises(ValueError, match="is no JSON"):
            load_results(tmp_path)

    def test_a_row_without_a_part(self, experiment: Any) -> None:
        del experiment.rows[0]["judge"]
        with pytest.raises(ValueError, match="lacks 'judge'"):
            load_results(experiment.write())

    def test_no_scores(self, tmp_path: Path) -> None:
        (tmp_path / "results.json").write_text(json.dumps({"meta": {"runs": []}, "rows": []}))
        with pytest.raises(ValueError, match="holds no scores"):
            load_results(tmp_path)
