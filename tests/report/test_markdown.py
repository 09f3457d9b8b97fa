"""Scores as Markdown against values worked out by hand."""

from __future__ import annotations

from typing import Any

from unidecouple.report.markdown import mean_and_deviation, scores_table
from unidecouple.report.page import SCORES, write_report
from unidecouple.report.results import load_results


def test_a_line_a_variant(new_experiment: Any) -> None:
    made = new_experiment()
    made.add("S2", "start", {"pope": (0.5,), "vqa": (1.0,), "geneval": (0.0,)})
    made.add("S2", "moe@lr=0.3", {"pope": (0.9, 0.8), "geneval": (0.25, 0.25)})
    folder = made.write()
    table = scores_table(load_results(folder), "S2")
    assert table == (
        "| | seeds | POPE | VQA | GenEval |\n|---|---|---|---|---|\n"
        "| `start` | 1 | .500 | 1.000 | .000 |\n"
        "| `moe@lr=0.3` | 2 | .850 ± .071 | \u2013 | .250 ± .000 |\n"
    )
    write_report(folder)
    assert (folder / SCORES).read_text() == f"<!-- unidecouple -->\n## S2\n\n{table}"


def test_one_value_has_no_deviation() -> None:
    assert mean_and_deviation([0.9999]) == "1.000"
    assert mean_and_deviation([0.1, 0.2, 0.3]) == ".200 ± .100"
