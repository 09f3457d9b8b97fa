"""What EXPERIMENTS.md says of papers' claims is what the published results say."""

from __future__ import annotations

from pathlib import Path

import pytest

from unidecouple.report.claims import markdown, verdicts
from unidecouple.report.results import load_results

ROOT = Path(__file__).parents[1]
JUDGED = sorted((ROOT / "results").glob("*/claims.md"))


@pytest.mark.parametrize("path", JUDGED, ids=lambda path: path.parent.name)
def test_the_table_of_claims_is_of_the_results(path: Path) -> None:
    table = markdown(verdicts(load_results(path.parent)))
    assert path.read_text() == table
    assert table in (ROOT / "EXPERIMENTS.md").read_text()


def test_there_is_one() -> None:
    assert JUDGED
