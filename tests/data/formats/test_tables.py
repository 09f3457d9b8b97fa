"""Parquet files and folders of ``datasets``: rows by number, images unread until asked for; clear words without the libraries."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from own_data import asked, flat, png, write_pictures
from unidecouple.data.formats import BAD, BadRecordError, open_readers
from unidecouple.data.formats.record import ImageBytes, ImageFile
from unidecouple.data.pictures import decode

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def bytes_of(seed: int) -> dict[str, Any]:
    return {"bytes": png(seed), "path": "lost.png"}


def test_rows_by_number_over_row_groups(tmp_path: Path) -> None:
    rows = [{"prompt": f"image {n}", "image": bytes_of(n)} for n in range(7)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=3)
    (reader,) = open_readers(tmp_path / "a.parquet", cache=tmp_path / "cache")
    assert reader.kinds.tolist() == [1] * 7
    for number in (6, 0, 3, 2):
        record = reader.record(number)
        assert (record.turns[0].parts, record.generated) == ((f"image {number}",), (ImageBytes(png(number)),))
        assert record.where.endswith(f"a.parquet: row {number}")


def test_messages_paths_and_gaps(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.png", "b.png")
    rows = [asked("b.png"), {**asked(None), "images": None}, {**asked(None), "images": ["a.png"]}]
    rows += [{**asked("b.png"), "task": "text"}, {**asked("b.png"), "task": "mmu"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (reader,) = open_readers(tmp_path / "a.parquet")
    assert reader.kinds.tolist() == [0, 2, BAD, 0, 0]  # from_pylist takes the columns of the first row, so no task
    assert reader.record(0).turns[0].pictures == (ImageFile(tmp_path / "b.png"),)
    with pytest.raises(BadRecordError, match=r"row 2: 1 images are listed, but 1 of them have no <image>"):
        reader.record(2)


def test_a_damaged_group_costs_its_rows(tmp_path: Path) -> None:
    rows = [{"prompt": f"image {n}", "image": bytes_of(n)} for n in range(4)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2, use_dictionary=False, compression="snappy")
    (reader,) = open_readers(path, cache=tmp_path / "cache")
    group = pq.ParquetFile(path).metadata.row_group(1)
    start = min(group.column(n).data_page_offset for n in range(group.num_columns))
    content = bytearray(path.read_bytes())
    content[start : start + 400] = b"\xff" * 400
    path.write_bytes(bytes(content))
    (reader,) = open_readers(path)
    assert reader.kinds.tolist() == [1, 1, BAD, BAD]
    with pytest.raises(BadRecordError, match=r"row 2: it cannot be read"):
        reader.record(2)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"prompt": "a", "image": bytes_of(0)}]), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"b.parquet is not a readable parquet file"):
        open_readers(tmp_path / "b.parquet")


def test_a_hubs_name_is_told_how_to_become_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command in the message works: here on a folder of that name, which ``datasets`` takes as it takes a name of a hub."""
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"If it is a data set on the Hub, download it once.*give data/pets$") as refused:
        open_readers(Path("someone/pets"))
    (tmp_path / "someone/pets").mkdir(parents=True)
    rows = [{"caption": "a cow", "image": bytes_of(0)}, {"caption": "a pig", "image": bytes_of(1)}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "someone/pets/train.parquet")
    (code,) = re.findall(r'python -c "(.*)"', str(refused.value))
    own = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | own, capture_output=True)
    (reader,) = open_readers(Path("data/pets"))
    assert (reader.format, reader.kinds.tolist()) == ("datasets", [1, 1])
    assert reader.record(1).generated == (ImageBytes(png(1)),)
    for path in ("someone/gone.parquet", "someone/more/pets", "nothing"):
        with pytest.raises(ValueError, match="give a file, a pattern, or a folder"):
            open_readers(Path(path))


def test_folders_of_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"caption": datasets.Value("string"), "image": datasets.Image()})
    table = datasets.Dataset.from_dict({"caption": ["a cow", "a pig"], "image": [bytes_of(0), bytes_of(1)]}, features=features)
    table.save_to_disk(str(tmp_path / "one"))
    (reader,) = open_readers(tmp_path / "one", cache=tmp_path / "cache")
    assert (reader.format, reader.kinds.tolist()) == ("datasets", [1, 1])
    assert decode(reader.record(1).generated[0]).size == (24, 16)
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(ValueError, match=r"contains the splits train: give the folder of one split, such as .*train"):
        open_readers(tmp_path / "splits")


@pytest.mark.parametrize(("data_type", "library"), [("parquet", "pyarrow"), ("datasets", "datasets")])
def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_type: str, library: str) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"PAR1")
    for name in (library, "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"needs {library}, which is not installed: pip install 'pyarrow>="):
        open_readers(path, data_type)


def test_flat_rows_may_name_files(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", "a.png")
    pq.write_table(pa.Table.from_pylist([flat()]), tmp_path / "a.parquet")
    (reader,) = open_readers(tmp_path / "a.parquet", root=tmp_path / "pictures")
    assert decode(reader.record(0).generated[0]).size == (24, 16)


def test_columns_of_edits(tmp_path: Path) -> None:
    """As in ShareGPT-4o-Image: input_prompt, input_image (a list), output_image; images as bytes."""
    row = {"input_prompt": "a red cow", "input_image": [bytes_of(0)], "output_image": bytes_of(1)}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    columns = {"prompt": "input_prompt", "source_images": "input_image", "image": "output_image"}
    (reader,) = open_readers(tmp_path / "a.parquet", columns=columns)
    assert reader.kinds.tolist() == [1]
    record = reader.record(0)
    assert [[p.read() for p in shown] for shown in (record.sources, record.generated)] == [
        [bytes_of(0)["bytes"]],
        [bytes_of(1)["bytes"]],
    ]
