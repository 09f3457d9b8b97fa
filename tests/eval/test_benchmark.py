"""Score rows, and the checks on what a model hands back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from unidecouple.eval.benchmark import Score, ask, paint

PICTURE = np.zeros((2, 2, 3), dtype=np.uint8)


def test_score_row_holds_every_field_in_order() -> None:
    row = Score("pope", "accuracy", 0.75, "official", 1.0, 0.5).to_json()
    assert list(row.items()) == [
        ("benchmark", "pope"),
        ("metric", "accuracy"),
        ("value", 0.75),
        ("judge", "official"),
        ("ceiling", 1.0),
        ("floor", 0.5),
    ]


def test_missing_answer_is_an_error_and_not_a_shift() -> None:
    def forgetful(images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        return ["yes"] * (len(questions) - 1)

    with pytest.raises(ValueError, match="1 answers to 2 questions"):
        ask(forgetful, [PICTURE, PICTURE], ["a?", "b?"])


@pytest.mark.parametrize(("given", "wanted"), [([1, 2], 2), ([2], 2), ([2, 2], 0)])
def test_wrong_numbers_of_pictures_are_an_error(given: list[int], wanted: int) -> None:
    def painter(prompts: Sequence[str], num_images: int, seed: int) -> list[list[np.ndarray]]:
        return [[PICTURE] * count for count in given]

    with pytest.raises(ValueError, match=r"num_images is 0|pictures for 2 prompts"):
        paint(painter, ["a", "b"], wanted, 0)
