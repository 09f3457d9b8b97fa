"""MMMU from parquet files and datasets folders: prompts, scores by hand, failures reported, the official answer files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from own_data import png
from published_sets import MMMU, mmmu_row
from unidecouple.data.formats.record import ImageBytes
from unidecouple.eval.mmmu import open_files


def as_parquet(folder: Path) -> None:
    for subject, rows in MMMU.items():
        (folder / subject).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / subject / "validation-00000-of-00001.parquet")


def as_datasets(folder: Path) -> None:
    for subject, rows in MMMU.items():
        datasets.disable_progress_bars()
        datasets.Dataset.from_list(rows).save_to_disk(folder / subject)


@pytest.mark.parametrize("write", [as_parquet, as_datasets])
def test_rows_become_the_official_prompts(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "mmmu")
    benchmark = open_files(tmp_path)
    texts = {query.id: query.text for query in benchmark.queries}
    assert list(texts) == ["validation_Art_1", "validation_Art_2", "validation_Public_Health_1"]
    ending = "Answer with the option's letter from the given choices directly."
    assert texts["validation_Art_1"] == f"What is <image 1>?\n\n(A) a cat\n(B) a dog\n\n{ending}"
    assert texts["validation_Public_Health_1"] == "What is <image 1>?\n\nAnswer the question using a single word or phrase."
    assert benchmark.queries[0].picture == ImageBytes(png(1))
    assert len(open_files(tmp_path, limit=1).queries) == 2


def test_scores_by_hand_with_failures_wrong_and_guessed(tmp_path: Path) -> None:
    as_parquet(tmp_path)
    benchmark = open_files(tmp_path)
    said = {"validation_Art_1": "(B)", "validation_Art_2": "no idea", "validation_Public_Health_1": "it is 12.50"}
    report = benchmark.score(said)
    rows = {row.metric: row for row in report.scores}
    assert rows["accuracy"].value == pytest.approx(2 / 3)
    assert rows["accuracy"].floor == pytest.approx((1 / 2 + 1 / 4) / 3)
    assert rows["accuracy/official"].value == pytest.approx(3 / 3)  # Random(42)'s first choice of four is A, which is right
    assert (rows["accuracy/Art"].value, rows["accuracy/Public_Health"].value) == (0.5, 1.0)
    assert rows["accuracy/most frequent answer"].value == pytest.approx(1 / 3)
    assert report.failures == {"no option named": 1, "questions shown one of several images": 1}


def test_the_official_answer_files(tmp_path: Path) -> None:
    as_parquet(tmp_path / "data")
    benchmark = open_files(tmp_path / "data")
    assert benchmark.export is not None
    benchmark.export(
        {"validation_Art_1": "It is (B)", "validation_Art_2": "?", "validation_Public_Health_1": "12.5"}, tmp_path / "out"
    )
    total = json.loads((tmp_path / "out" / "total_val_output.json").read_text())
    assert total == {"validation_Art_1": "B", "validation_Art_2": "?", "validation_Public_Health_1": "12.5"}
    rows = json.loads((tmp_path / "out" / "Art" / "output.json").read_text())
    assert rows[0] == {
        "id": "validation_Art_1",
        "question_type": "multiple-choice",
        "answer": "B",
        "all_choices": ["A", "B"],
        "index2ans": {"A": "a cat", "B": "a dog"},
        "response": "It is (B)",
    }
    (opened,) = json.loads((tmp_path / "out" / "Public_Health" / "output.json").read_text())
    assert (opened["question_type"], opened["answer"]) == ("short-answer", ["12.5", "about twelve"])


def test_files_that_are_not_mmmu_s(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no mmmu"):
        open_files(tmp_path)
    row = mmmu_row(1, "Art", "open", "[]", "x")
    pq.write_table(pa.Table.from_pylist([{**row, "image_1": {"bytes": None, "path": None}}]), tmp_path / "validation-0.parquet")
    with pytest.raises(ValueError, match="validation_Art_1 holds dict where an image"):
        open_files(tmp_path)
    del row["options"]
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "validation-0.parquet")
    with pytest.raises(ValueError, match="no column 'options'"):
        open_files(tmp_path)
    (tmp_path / "validation-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="cannot be read"):
        open_files(tmp_path)
