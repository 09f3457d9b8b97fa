"""MME's release folder: both layouts, the official scores by hand, an always-yes model at its known score."""

from __future__ import annotations

from pathlib import Path

import pytest

from published_sets import write_mme
from unidecouple.eval.mme import open_files, read_label


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("Yes", "yes"),
        ("yes, it is", "yes"),
        ("No.", "no"),
        (" no", "no"),
        ("\n \t yes", "yes"),
        ("know", "no"),  # the official rule looks for letters
        ("I think yes", "other"),
        ("", "other"),
    ],
)
def test_the_first_four_letters_decide(answer: str, label: str) -> None:
    assert read_label(answer) == label


def test_scores_by_hand(tmp_path: Path) -> None:
    benchmark = open_files(write_mme(tmp_path / "MME_Benchmark_release_version").parent)
    assert [query.id for query in benchmark.queries] == [
        f"{s}/{p}/{n}" for s in ("existence", "artwork") for p in "12" for n in "12"
    ]
    answers = {query.id: "Yes" if query.id.endswith("/1") else "No" for query in benchmark.queries}
    answers |= {"artwork/1/1": "maybe", "artwork/2/2": "yes"}
    report = benchmark.score(answers)
    rows = {row.metric: row for row in report.scores}
    assert (rows["score/existence"].value, rows["score/artwork"].value, rows["perception"].value) == (200.0, 50.0, 250.0)
    assert (rows["perception"].ceiling, rows["perception"].floor) == (400.0, 150.0)
    assert (rows["accuracy/artwork"].value, rows["accuracy+/artwork"].value) == (0.5, 0.0)
    assert "cognition" not in rows
    assert report.failures == {"neither yes nor no": 1}


def test_always_yes_gets_what_its_row_says(tmp_path: Path) -> None:
    benchmark = open_files(write_mme(tmp_path))
    rows = {row.metric: row.value for row in benchmark.score({query.id: "yes" for query in benchmark.queries}).scores}
    assert rows["perception"] == rows["perception/always yes"] == 100.0


def test_a_limit_keeps_pairs_whole(tmp_path: Path) -> None:
    assert len(open_files(write_mme(tmp_path), limit=1).queries) == 4


def test_answers_are_written_as_calculation_py_reads_them(tmp_path: Path) -> None:
    benchmark = open_files(write_mme(tmp_path / "data"))
    assert benchmark.export is not None
    benchmark.export({query.id: "Yes,\n\tof course" for query in benchmark.queries}, tmp_path)
    lines = (tmp_path / "artwork.txt").read_text().splitlines()
    assert lines[0].split("\t") == ["1", "Is this artwork? Please answer yes or no.", "Yes", "Yes, of course"]
    assert len(lines) == 4


def test_what_is_no_mme_is_refused(tmp_path: Path) -> None:
    write_mme(tmp_path)
    (tmp_path / "existence" / "1.jpg").unlink()
    with pytest.raises(ValueError, match=r"existence/1\.txt: image '1\.jpg' is missing"):
        open_files(tmp_path)
    (tmp_path / "existence" / "1.txt").write_text("Is it?\tYes\nIs it not?\tYes\n")
    with pytest.raises(ValueError, match="is not MME's"):
        open_files(tmp_path)
