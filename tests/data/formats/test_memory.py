"""Memory of a process that reads a file does not grow with the file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from own_data import write_tar

BLOB = np.random.default_rng(0).bytes(1 << 18)
ALLOWED = 24 << 20
"""Bytes of growth; holding what the larger file has more is 50 MiB at least."""
READ = """
import re, sys
from pathlib import Path
from unidecouple.data.formats import open_readers
(reader,) = open_readers(Path(sys.argv[1]), cache=Path(sys.argv[2]))
count = len(reader.kinds)
for number in range(0, count, 7):
    record = reader.record(number * 5 % count)
    assert [len(image.read()) for turn in record.turns for image in turn.pictures] == [1 << 18]
status = Path("/proc/self/status").read_text()
print(count, 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", status)[1]), 1024 * int(re.search(r"RssFile:\\s*(\\d+)", status)[1]))
"""


def parquet_of_one_group(path: Path, count: int) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"prompt": ["a cow"] * count, "image": [BLOB] * count}), path)
    return path


def arrow_folder(path: Path, count: int) -> Path:
    import datasets

    datasets.Dataset.from_dict({"prompt": ["a cow"] * count, "image": [BLOB] * count}).save_to_disk(str(path))
    return path


def array(path: Path, count: int) -> Path:
    import base64

    url = "data:image/png;base64," + base64.b64encode(BLOB).decode()
    with path.open("w") as file:
        file.write("[\n" + ",\n".join(json.dumps({"prompt": "a cow", "image": url}) for _ in range(count)) + "]")
    return path


def tar(path: Path, count: int) -> Path:
    return write_tar(path, {f"{n}.{end}": BLOB if end == "png" else b"a cow" for n in range(count) for end in ("txt", "png")})


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize(
    ("write", "name", "counts"),
    [
        (parquet_of_one_group, "a.parquet", (160, 480)),  # both are copied
        (arrow_folder, "set", (8, 208)),
        (array, "a.json", (8, 208)),
        (tar, "a.tar", (8, 208)),
    ],
)
def test_reading_needs_no_more_memory_for_a_larger_file(
    write: Callable[[Path, int], Path], name: str, counts: tuple[int, int], tmp_path: Path
) -> None:
    """Pages of a memory-mapped file (``datasets``) are the system's to drop, so they are not counted."""
    if name in ("a.parquet", "set"):
        pytest.importorskip("datasets")
    peaks = []
    for count in counts:
        folder = tmp_path / str(count)
        folder.mkdir()
        command = [sys.executable, "-c", READ, str(write(folder / name, count)), str(folder / "cache")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        there, peak, mapped = map(int, done.stdout.split())
        assert there == count
        peaks.append(peak - mapped)
    assert peaks[1] - peaks[0] < ALLOWED, peaks
