"""POPE's rules: the three parsers, and the metrics by hand."""

from __future__ import annotations

import pytest

from unidecouple.eval.pope import PARSERS, measure_answers


@pytest.mark.parametrize(
    ("answer", "official", "exact", "words"),
    [
        ("Yes", "yes", "yes", "yes"),
        ("no", "no", "no", "no"),
        (" NO ", "unknown", "no", "no"),
        ("Yes, there is. No doubt", "yes", "unknown", "unknown"),
        ("No, there is not", "no", "unknown", "no"),
        ("There is not", "no", "unknown", "unknown"),
        ("yes.", "yes", "unknown", "yes"),
        ("", "unknown", "unknown", "unknown"),
        ("a cow", "unknown", "unknown", "unknown"),
        ("yes/no", "yes", "unknown", "unknown"),
        ("No-one - yes", "yes", "unknown", "yes"),  # a mark that touches a space anywhere is deleted: "noone yes"
        ("-No-one yes", "yes", "unknown", "unknown"),  # else it becomes a space: "no one yes"
    ],
)
def test_parsers_disagree(answer: str, official: str, exact: str, words: str) -> None:
    assert [PARSERS[name].read(answer) for name in ("official", "lmms-eval", "vlmevalkit")] == [official, exact, words]


@pytest.mark.parametrize(
    ("parser", "accuracy", "precision", "recall", "yes_ratio"),
    [
        ("official", 3 / 6, 2 / 4, 2 / 3, 4 / 6),  # "perhaps" is a yes: hits 2, false alarms 2, misses 1
        ("lmms-eval", 2 / 6, 1 / 2, 1 / 2, 2 / 6),  # "perhaps" is wrong, and no missed positive
        ("vlmevalkit", 2 / 6, 1 / 2, 1 / 3, 2 / 6),  # "perhaps" is wrong and a missed positive
    ],
)
def test_metrics_by_hand(parser: str, accuracy: float, precision: float, recall: float, yes_ratio: float) -> None:
    gold = ["yes", "yes", "yes", "no", "no", "no"]
    given = ["yes", "no", "perhaps", "yes", "no", "perhaps"]
    f1 = 2 * precision * recall / (precision + recall)
    expected = {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1, "yes_ratio": yes_ratio, "unparsed": 2.0}
    assert measure_answers(gold, given, PARSERS[parser]) == pytest.approx(expected)


def test_ratios_without_a_denominator_are_zero() -> None:
    metrics = measure_answers(["yes"], ["no"], PARSERS["official"])
    assert (metrics["precision"], metrics["recall"], metrics["f1"]) == (0.0, 0.0, 0.0)
