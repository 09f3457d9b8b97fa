"""VQAv2's rules by hand. The official code (a013f00) gave the same on 5,000 random cases; see docs/eval.md."""

from __future__ import annotations

import pytest

from unidecouple.eval.vqa_rules import normalize, normalize_answer, soft_accuracy


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("The red bus.", "red bus"),
        ("two", "2"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("red/blue", "red blue"),
        ("yes, no/maybe", "yes no maybe"),
        ("red /blue", "red blue"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("a\tb\n", "b"),
    ],
)
def test_normalize(answer: str, form: str) -> None:
    assert normalize_answer(answer) == form


@pytest.mark.parametrize(
    ("answer", "people", "share"),
    [
        ("cat", ["cat"] * 4 + ["dog"] * 6, 1.0),
        ("cat", ["cat"] * 3 + ["dog"] * 7, (3 * 2 / 3 + 7 * 1) / 10),
        ("cat", ["cat"] + ["dog"] * 9, (0 + 9 / 3) / 10),
        ("The cat!", ["cat"] * 9 + ["a dog"], 1.0),
        ("The cat", ["cat"] * 10, 0.0),  # nothing is normalised where all agree
        ("cat", ["cat"] * 10, 1.0),
        ("bird", ["cat"] * 10, 0.0),
    ],
)
def test_soft_accuracy(answer: str, people: list[str], share: float) -> None:
    assert soft_accuracy(answer, people) == pytest.approx(share)


@pytest.mark.parametrize(("answer", "form"), [(" Red. ", "red"), ("TOP left", "top left"), ("two", "two"), ("red..", "red.")])
def test_the_form_of_exact_comparison(answer: str, form: str) -> None:
    assert normalize(answer) == form
