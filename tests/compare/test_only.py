"""Parts of a grid by name."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from unidecouple.compare.only import chosen, parse
from unidecouple.compare.plan import Comparison, Rate, Scenario, Variant, jobs

PLANNED = jobs(
    Comparison(
        "grid",
        {"S1": Scenario("replay", "understanding", 4, 1), "S2": Scenario("joint", "unified", 4, 4)},
        {"dense_joint": Variant("a"), "moe": Variant("b", rates=("lr=0.3",)), "late": Variant("c", scenarios=("S2",))},
        seeds=(0, 1),
        rates={"": Rate(), "lr=0.3": Rate(0.3)},
    )
)


def cells(*texts: str) -> Sequence[str]:
    return [f"{job.scenario} {job.variant} {job.seed}" for job in chosen(parse(texts, PLANNED), PLANNED)]


def test_nothing_asked_is_everything() -> None:
    assert len(cells()) == len(PLANNED) == 2 + 2 * 4 + 2 * 2 + 4


def test_keys_must_all_hold_and_values_of_one_are_alternatives() -> None:
    assert cells("variant=moe,scenario=S1,seed=1") == ["S1 start 0", "S1 moe@lr=0.3 1"]
    both = ["S1 start 0", "S1 dense_joint 0", "S1 dense_joint@lr=0.3 0", "S1 moe@lr=0.3 0"]
    assert cells("scenario=S1,seed=0", "variant=moe,variant=dense_joint") == both


def test_rates_have_equals_signs_and_a_variant_s_own_is_empty() -> None:
    assert cells("rate=lr=0.3,seed=0,scenario=S2,variant=late") == ["S2 start 0", "S2 late@lr=0.3 0"]
    assert cells("rate=,seed=0,scenario=S2,variant=late") == ["S2 start 0", "S2 late 0"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variant=moee", "no such variant; it has 'start', 'dense_joint', 'moe', 'late'"),
        ("moe", "must be key=value"),
        ("method=moe", "with a key of scenario, variant, rate, seed"),
        ("scenario=S1,variant=late", "scenario=S1, variant=late asks for no run"),
    ],
)
def test_what_the_grid_lacks_is_reported(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cells(text)
