"""What the runner decides by itself: which run goes first."""

from __future__ import annotations

from pathlib import Path

from unidecouple import config
from unidecouple.experiment.plan import Experiment, jobs
from unidecouple.experiment.runner import expected_work

DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"


def test_the_longest_run_of_the_demo_goes_first_and_scoring_the_start_last() -> None:
    order = sorted(jobs(config.load(Experiment, [DEMO])), key=expected_work, reverse=True)
    assert (order[0].scenario, order[0].variant) == ("S1-r16", "unidecouple")
    assert (order[1].scenario, order[1].variant) == ("S1-r0", "unidecouple")
    assert order[-1].variant == "start"
    assert expected_work(order[-1]) == 0
