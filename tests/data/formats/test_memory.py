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
import os, re, sys
from pathlib import Path
from unidecouple.data.formats import open_readers
def read(name):
    (reader,) = open_readers(Path(name), cache=Path(name).parent / "cache")
    count = len(reader.kinds)
    for number in range(0, count, 7):
        record = reader.record(number * 5 % count)
        assert [len(image.read()) for turn in record.turns for image in turn.pictures] == [1 << 18]
    status = Path("/proc/self/status").read_text()
    print(count, 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", status)[1]), 1024 * int(re.search(r"RssFile:\\s*(\\d+)", status)[1]))
for number in range(1, len(sys.argv), 2):
    if os.fork() == 0:  # a process for each format: its peak is its own
        for name in sys.argv[number : number + 2]:
            read(name)
        sys.stdout.flush()
        os._exit(0)
    assert os.wait()[1] == 0
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


FORMATS: dict[str, tuple[Callable[[Path, int], Path], tuple[int, int]]] = {
    "a.parquet": (parquet_of_one_group, (160, 480)),  # both are copied
    "set": (arrow_folder, (8, 208)),
    "a.json": (array, (8, 208)),
    "a.tar": (tar, (8, 208)),
}
"""By the name of a file: what writes it, and of how many records."""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from Linux's /proc")
def test_reading_needs_no_more_memory_for_a_larger_file(tmp_path: Path) -> None:
    """Pages of a memory-mapped file (``datasets``) are the system's to drop, so they are not counted."""
    pytest.importorskip("datasets")
    paths = []
    for name, (write, counts) in FORMATS.items():
        for count in counts:
            (tmp_path / str(count)).mkdir(exist_ok=True)
            paths.append(str(write(tmp_path / str(count) / name, count)))
    done = subprocess.run([sys.executable, "-c", READ, *paths], capture_output=True, text=True, check=True)
    rows = [[int(value) for value in line.split()] for line in done.stdout.splitlines()]
    assert [there for there, *_ in rows] == [count for _, counts in FORMATS.values() for count in counts]
    peaks = [peak - mapped for _, peak, mapped in rows]
    for name, small, large in zip(FORMATS, peaks[::2], peaks[1::2], strict=True):
        assert large - small < ALLOWED, (name, small, large)
