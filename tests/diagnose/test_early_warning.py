"""When one task falls while the other rises."""

from __future__ import annotations

import pytest

from unidecouple.diagnose.early_warning import early_warning

TASKS = {"pope": "mmu", "vqa": "mmu", "geneval": "t2i", "language": "language"}
START = {"pope": 0.98, "vqa": 0.85, "geneval": 0.0}


def test_understanding_lost_to_generation_is_said_with_its_figures() -> None:
    said = early_warning([START, {"pope": 0.99, "vqa": 0.84, "geneval": 0.1}, {"pope": 0.6, "vqa": 0.84, "geneval": 0.4}], TASKS)
    assert said is not None
    assert "mmu falls (pope 0.990 -> 0.600)" in said
    assert "geneval 0.000 -> 0.400" in said
    assert "vqa" not in said


def test_generation_lost_to_understanding() -> None:
    said = early_warning([{"vqa": 0.5, "geneval": 0.7}, {"vqa": 0.8, "geneval": 0.6}], TASKS)
    assert said is not None
    assert "t2i falls (geneval 0.700 -> 0.600)" in said


def test_language_is_a_task_of_its_own() -> None:
    """It may fall alone, beside understanding, or while understanding rises; its unit is nats per token."""
    start = {"vqa": 0.5, "geneval": 0.1, "language": -3.0}
    alone = early_warning([start, {"vqa": 0.5, "geneval": 0.4, "language": -3.4}], TASKS)
    assert alone is not None
    assert "language falls (language -3.000 -> -3.400) while another task rises (geneval 0.100 -> 0.400)" in alone
    both = early_warning([start, {"vqa": 0.3, "geneval": 0.4, "language": -3.4}], TASKS)
    assert both is not None
    assert "mmu falls (vqa 0.500 -> 0.300) and language falls (language -3.000 -> -3.400)" in both
    seeing = early_warning([start, {"vqa": 0.8, "geneval": 0.1, "language": -3.4}], TASKS)
    assert seeing is not None
    assert "another task rises (vqa 0.500 -> 0.800)" in seeing


@pytest.mark.parametrize(
    "history",
    [
        [],
        [START],
        [START, {"pope": 0.5, "vqa": 0.2, "geneval": 0.0}],  # nobody gains: training is broken, but there is no conflict
        [START, {"pope": 0.98, "vqa": 0.85, "geneval": 0.8}],
        [START, {"pope": 0.95, "vqa": 0.82, "geneval": 0.8}],  # within the scatter
        [{"new": 0.0}, {"new": 0.9, "pope": 0.1}],
    ],
)
def test_no_conflict_no_warning(history: list[dict[str, float]]) -> None:
    assert early_warning(history, TASKS) is None
