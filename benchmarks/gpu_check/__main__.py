"""``python -m benchmarks.gpu_check`` (``make gpu-check``): all parts, in order of value.

Needs one GPU of 80 GB or more, and no network: what the Python at hand lacks is installed for this process from the wheels of
``make gpu-bundle``.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.gpu_check.findings import SUMMARY
from benchmarks.gpu_check.runner import Options, Part, run_parts

ROOT = Path(__file__).parents[2]
PARTS = (
    Part("ceilings", 30, "benchmarks.gpu_check.ceilings:run"),
    Part("correct", 90, "benchmarks.gpu_check.correct:run"),
    Part("decode_1b", 90, "benchmarks.gpu_check.decode:small"),
    Part("decode_7b", 75, "benchmarks.gpu_check.decode:large"),
    Part("train", 100, "benchmarks.gpu_check.train:run"),
    Part("layers", 35, "benchmarks.gpu_check.layers:run"),
    Part("kernels", 25, "benchmarks.gpu_check.ceilings:kernels"),
    Part("cuda_tests", 25, "benchmarks.gpu_check.cuda_tests:run"),
    Part("compare", 110, "benchmarks.gpu_check.compare:run"),
)
ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
}


def add_wheels(folder: Path) -> None:
    """Install the wheels in ``folder`` for this process and those it starts, unless all of their versions are installed."""
    wheels = sorted(folder.glob("*.whl"))
    if all(_installed(wheel) for wheel in wheels):
        return
    site = tempfile.mkdtemp(prefix="gpu-check-")
    atexit.register(shutil.rmtree, site, ignore_errors=True)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--no-cache-dir",
        "--target",
        site,
    ]
    subprocess.run([*pip, *map(str, wheels)], check=True)
    sys.path.insert(0, site)
    os.environ["PYTHONPATH"] = os.pathsep.join([site, *filter(None, [os.environ.get("PYTHONPATH")])])


def _installed(wheel: Path) -> bool:
    found = re.match(r"(?P<name>[^-]+)-(?P<version>[^-]+)-", wheel.name)
    assert found is not None, wheel
    try:
        return version(found["name"]) == found["version"]
    except PackageNotFoundError:
        return False


def main(arguments: list[str] | None = None) -> int:
    """Run the parts that are asked for and print the summary."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description="What only a GPU can show.")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "results" / "gpu", help="gets a folder per run (default: results/gpu)"
    )
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="these parts (default: all)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU can do; their times mean nothing")
    parser.add_argument("--budget", type=float, default=540, help="seconds for all parts (default: 540)")
    parser.add_argument("--wheels", type=Path, default=ROOT / "build" / "gpu" / "wheels", help="of make gpu-bundle")
    given = parser.parse_args(arguments)
    if given.device == "cpu" and not given.tiny:
        parser.error("--device cpu takes hours at full size: add --tiny")
    start = time.monotonic()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    parts = [part for part in PARTS if given.only is None or part.name in given.only]
    if given.device == "cpu":  # parts are forked, and then need no imports
        for part in parts:
            importlib.import_module(part.target.partition(":")[0])
    else:
        add_wheels(given.wheels)
    folder = given.output / time.strftime("%Y-%m-%d-%H%M%S", time.gmtime())
    folder.mkdir(parents=True)
    spent = time.monotonic() - start
    code = run_parts(parts, Options(folder, given.device, given.tiny, given.budget - spent, 590 - spent))
    print(f"{(folder / SUMMARY).read_text(encoding='utf-8')}\n{folder}")
    return code


if __name__ == "__main__":
    sys.exit(main())
