"""Claims name what the grid runs; those of the field are all of that kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from unidecouple import config
from unidecouple.compare.claim import Claim
from unidecouple.compare.plan import Comparison, Rate, Scenario, Variant, jobs

FIELD = Path(__file__).parents[2] / "recipes" / "compare" / "field.yaml"
GRID = Comparison(
    "grid",
    {"S1-r0": Scenario("", "understanding", 2, 0), "S2": Scenario("", "unified", 2, 1)},
    {"dense_joint": Variant("a", rates=("",)), "dense_mmu": Variant("b", tasks="mmu")},
    rates={"": Rate(), "low": Rate(0.1)},
)


def claimed(**fields: object) -> Comparison:
    return replace(GRID, claims=(Claim("It helps.", "a paper", **fields),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"of": "moe"}, "names 'moe', which is not run in S1-r0"),
        ({"of": "dense_joint@low"}, "names 'dense_joint@low', which is not run in S1-r0"),
        ({"of": "dense_joint", "against": "dense_mmu"}, "names 'dense_mmu', which is not run in S1-r0"),  # no data of its task
        ({"of": "dense_joint", "scenarios": ("S3",)}, "names scenario 'S3'; this grid has 'S1-r0', 'S2'"),
    ],
)
def test_a_claim_on_what_is_not_run_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jobs(claimed(higher=("pope",), **fields))


def test_what_the_grid_runs_can_be_claimed_of() -> None:
    assert jobs(claimed(of="dense_joint", against="dense_mmu@low", higher=("pope",), scenarios=("S2",)))
    assert jobs(claimed(of="dense_joint", against="start", lower=("pope",)))


def test_a_claim_says_something_or_why_not() -> None:
    with pytest.raises(ValueError, match="says nothing of 'dense_joint': name scores"):
        Claim("It helps.", "a paper", of="dense_joint")
    with pytest.raises(ValueError, match=r"names no variant .*: say in `settle` why"):
        Claim("It helps.", "a paper")
    with pytest.raises(ValueError, match="names no variant"):
        Claim("It helps.", "a paper", higher=("pope",), settle="A larger model.")


def test_every_method_of_the_field_is_claimed_of() -> None:
    """Whoever adds a method says what its paper claims."""
    grid = config.load(Comparison, [FIELD])
    said = {one.partition("@")[0] for claim in grid.claims for one in (claim.of, claim.against) if one}
    assert set(grid.variants) <= said
